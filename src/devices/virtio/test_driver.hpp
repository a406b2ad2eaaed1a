// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The driver's side of a virtio PCI function, in memory and without a VM: negotiates through the
/// registers, lays out queues, makes chains available, takes them back. Test code only; one thread,
/// on which the device's worker runs too, in run().
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/verify.hpp"
#include "devices/pci/test_function.hpp"
#include "devices/virtio/virtio_pci.hpp"

namespace doppel::devices::test {

struct VirtioMachine {
    static constexpr std::uint64_t kRamBytes = 4u << 20;
    memory::RamRegion region{{0}, kRamBytes};
    std::unique_ptr<memory::GuestMemory> memory = memory::GuestMemory::create({&region, 1}).value();
    std::unique_ptr<base::EventLoop> worker = base::EventLoop::create().value();
    PciRig pci;
};

class TestDriver {
public:
    static constexpr std::uint64_t kBar = 0x10'0000'0000;
    enum class Interrupts : std::uint8_t { Msix, Intx };
    struct Part {
        std::uint64_t gpa;
        std::uint32_t bytes;
        bool writable = false;
    };
    struct Used {
        std::uint32_t head;
        std::uint32_t written;
    };

    TestDriver(VirtioMachine& machine, std::unique_ptr<VirtioDevice> device)
        : machine_{machine}, function_{std::make_unique<VirtioPci>(std::move(device))} {
        DOPPEL_VERIFY(machine_.pci.bus.add({}, *function_), "an empty bus");
        machine_.pci.write({}, pci::kBar0, static_cast<std::uint32_t>(kBar));
        machine_.pci.write({}, pci::kBar0 + 4, static_cast<std::uint32_t>(kBar >> 32));
        machine_.pci.write({}, pci::kCommand, pci::kCommandMemory | pci::kCommandBusMaster, 2);
    }
    ~TestDriver() {
        machine_.pci.bus.remove(*function_);
        run();
    }

    VirtioPci& function() { return *function_; }
    VirtioMachine& machine() { return machine_; }
    memory::GuestMemory& memory() { return *machine_.memory; }

    std::uint32_t read(std::uint64_t offset, std::uint8_t size) {
        return static_cast<std::uint32_t>(machine_.pci.mmio.read(kBar + offset, size));
    }
    void write(std::uint64_t offset, std::uint8_t size, std::uint64_t value) {
        machine_.pci.mmio.write(kBar + offset, size, value);
    }
    std::uint64_t config(std::uint64_t offset, std::uint8_t size) {
        std::uint64_t value = 0;
        for (std::uint8_t i = 0; i < size; ++i)
            value |= std::uint64_t{read(VirtioPci::kDeviceConfig + offset + i, 1)} << i * 8;
        return value;
    }
    std::uint8_t status() { return static_cast<std::uint8_t>(read(0x14, 1)); }
    void set_status(std::uint8_t value) { write(0x14, 1, value); }
    std::uint64_t offered() {
        write(0, 4, 0);
        const std::uint64_t low = read(4, 4);
        write(0, 4, 1);
        return low | std::uint64_t{read(4, 4)} << 32;
    }

    /// From reset to FEATURES_OK; whether the device agreed.
    bool negotiate(std::uint64_t features) {
        set_status(0);
        set_status(VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
        for (unsigned word = 0; word < 2; ++word) {
            write(8, 4, word);
            write(0x0c, 4, features >> word * 32 & 0xffff'ffff);
        }
        event_index_ = (features & VIRTIO_F_EVENT_IDX) != 0;
        set_status(VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK);
        return (status() & VIRTIO_STATUS_FEATURES_OK) != 0;
    }
    /// All of the way, with every queue at `size` or its own if that is smaller.
    void start(std::uint64_t features = VIRTIO_F_VERSION_1, std::uint16_t size = 16,
               Interrupts interrupts = Interrupts::Msix) {
        DOPPEL_VERIFY(negotiate(features), "the device takes the features");
        if (interrupts == Interrupts::Msix)
            use_msix();
        const auto count = read(0x12, 2);
        queues_.clear();
        for (unsigned i = 0; i < count; ++i)
            start_queue(i, size);
        set_status(status() | VIRTIO_STATUS_DRIVER_OK);
        run();
    }
    void start_queue(unsigned index, std::uint16_t wanted) {
        write(0x16, 2, index);
        const auto size = std::min<std::uint32_t>(wanted, read(0x18, 2));
        queues_.resize(std::max<std::size_t>(queues_.size(), index + 1));
        auto& q = queues_[index];
        q = {.size = size, .base = 0x10'0000 + index * 0x1'0000ull};
        write(0x18, 2, size);
        write(0x1a, 2, index);
        set_address(0x20, q.descriptors());
        set_address(0x28, q.available());
        set_address(0x30, q.used());
        DOPPEL_VERIFY(memory().fill({q.base}, 0x1'0000, std::byte{0}), "room for a queue");
        write(0x1c, 2, 1);
    }

    /// Writes descriptors for the parts and makes them available; the head.
    std::uint16_t add(unsigned queue, const std::vector<Part>& parts) {
        auto& q = queues_[queue];
        const auto head = q.next_descriptor;
        for (std::size_t i = 0; i < parts.size(); ++i) {
            const auto next = static_cast<std::uint16_t>((q.next_descriptor + 1) % q.size);
            put_descriptor(q.descriptors() + q.next_descriptor * 16u, parts[i],
                           i + 1 < parts.size(), next);
            q.next_descriptor = next;
        }
        make_available(queue, head);
        return head;
    }
    void put_descriptor(std::uint64_t at, const Part& part, bool has_next, std::uint16_t next,
                        std::uint16_t more_flags = 0) {
        put(at, part.gpa);
        put(at + 8, part.bytes);
        put(at + 12,
            static_cast<std::uint16_t>((has_next ? 1 : 0) | (part.writable ? 2 : 0) | more_flags));
        put(at + 14, next);
    }
    void make_available(unsigned queue, std::uint16_t head) {
        auto& q = queues_[queue];
        put(q.available() + 4 + q.next_available % q.size * 2u, head);
        ++q.next_available;
        put(q.available() + 2, q.next_available);
    }
    void notify(unsigned queue) { write(VirtioPci::kNotify + queue * 4, 2, queue); }
    /// What the worker has to do.
    void run() {
        for (int i = 0; i < 20; ++i)
            machine_.worker->run_ready();
    }
    void add_and_run(unsigned queue, const std::vector<Part>& parts) {
        add(queue, parts);
        notify(queue);
        run();
    }
    /// What came back since the last call.
    std::vector<Used> take_used(unsigned queue) {
        auto& q = queues_[queue];
        std::vector<Used> all;
        while (q.next_used != memory().load<std::uint16_t>({q.used() + 2})) {
            const auto at = q.used() + 4 + q.next_used % q.size * 8u;
            all.push_back(
                {*memory().load<std::uint32_t>({at}), *memory().load<std::uint32_t>({at + 4})});
            ++q.next_used;
        }
        if (event_index_)
            put(q.available() + 4 + q.size * 2u, q.next_used);
        return all;
    }
    /// Messages with this queue's vector, since the last call.
    std::size_t take_interrupts(unsigned vector) {
        auto& sent = machine_.pci.msis.sent;
        return std::erase_if(sent, [&](const auto& m) { return m.data == 0x40 + vector; });
    }

    template <typename T> void put(std::uint64_t gpa, T value) {
        DOPPEL_VERIFY(memory().store<T>({gpa}, value), "an address of the test in RAM");
    }
    void put_text(std::uint64_t gpa, std::string_view text) {
        DOPPEL_VERIFY(memory().write({gpa}, std::as_bytes(std::span{text})), "text in RAM");
    }
    std::string text(std::uint64_t gpa, std::size_t bytes) {
        std::string out(bytes, '?');
        DOPPEL_VERIFY(memory().read({gpa}, std::as_writable_bytes(std::span{out})), "text in RAM");
        return out;
    }
    struct Queue {
        std::uint32_t size = 0;
        std::uint64_t base = 0;
        std::uint16_t next_descriptor = 0, next_available = 0, next_used = 0;
        std::uint64_t descriptors() const { return base; }
        std::uint64_t available() const { return base + 0x8000; }
        std::uint64_t used() const { return base + 0xc000; }
    };
    Queue& queue(unsigned index) { return queues_[index]; }

private:
    void set_address(std::uint64_t at, std::uint64_t value) {
        write(at, 4, value & 0xffff'ffff);
        write(at + 4, 4, value >> 32);
    }
    void use_msix() {
        const auto vectors = read(0x12, 2) + 1;
        for (unsigned v = 0; v < vectors; ++v) {
            write(VirtioPci::kMsixTable + v * 16, 4, 0xfee0'0000);
            write(VirtioPci::kMsixTable + v * 16 + 8, 4, 0x40 + v);
            write(VirtioPci::kMsixTable + v * 16 + 12, 4, 0);
        }
        machine_.pci.write({}, static_cast<std::uint16_t>(capability(pci::kCapabilityMsix) + 2),
                           0x8000, 2);
        write(0x10, 2, vectors - 1);
    }
    std::uint16_t capability(std::uint8_t id) {
        auto at = static_cast<std::uint16_t>(machine_.pci.read({}, pci::kCapabilities, 1));
        while (at != 0 && machine_.pci.read({}, at, 1) != id)
            at = static_cast<std::uint16_t>(
                machine_.pci.read({}, static_cast<std::uint16_t>(at + 1), 1));
        return at;
    }

    VirtioMachine& machine_;
    std::unique_ptr<VirtioPci> function_;
    std::deque<Queue> queues_{};
    bool event_index_ = false;
};

} // namespace doppel::devices::test
