// SPDX-License-Identifier: Apache-2.0
/// A driver that tries everything on the queues of one virtio device: descriptors, rings and their
/// indices, buffers, configuration, in any order and any state. Input: which device, then steps of
/// one byte and what it needs. Nothing may crash, hang, or keep a chain for ever; what is saved
/// must load.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "base/log.hpp"
#include "devices/state_test_list.hpp"
#include "devices/virtio/test_driver.hpp"
#include "fuzz/input.hpp"

using namespace doppel;
using namespace doppel::devices;
using namespace doppel::devices::test;
using doppel::fuzz::Input;

namespace {

constexpr std::uint64_t kBuffers = 0x1000, kBufferBytes = 0x1000; // 16 of them
constexpr std::uint32_t kMaxQueues = 3;

/// The host's side of every device; outlives the driver.
struct Backends {
    explicit Backends(VirtioMachine& machine) : network{*machine.worker} {}
    block::Drive drive{std::make_unique<block::MemoryNode>(std::vector<std::byte>(1u << 16))};
    EchoNetwork network;
    EchoConsole console;
};

std::unique_ptr<VirtioDevice> make(unsigned which, VirtioMachine& m, Backends& backends) {
    switch (which % 4) {
    case 0:
        return std::make_unique<VirtioBlk>(backends.drive, VirtioBlk::Options{.serial = "fuzz"},
                                           *m.memory, *m.worker);
    case 1:
        return std::make_unique<VirtioNet>(backends.network, VirtioNet::Options{}, *m.memory,
                                           *m.worker);
    case 2: return std::make_unique<VirtioConsole>(backends.console, *m.memory, *m.worker);
    default: return std::make_unique<VirtioRng>(*m.memory, *m.worker);
    }
}

/// Most addresses are of buffers, some of the rings, the end of memory, or nowhere.
std::uint64_t address(Input& input) {
    const auto choice = input.number(1);
    if (choice < 0xc0)
        return kBuffers + choice % 16 * kBufferBytes;
    if (choice < 0xe0)
        return 0x10'0000 + choice % 16 * 0x4000;
    return choice < 0xf0 ? VirtioMachine::kRamBytes - choice % 16 * 8 : input.number(8);
}

class Fuzzer {
public:
    Fuzzer(VirtioMachine& machine, Backends& backends, Input& input)
        : backends_{backends}, input_{input},
          driver_{machine, make(static_cast<unsigned>(input.number(1)), machine, backends)},
          count_{std::min(driver_.read(0x12, 2), kMaxQueues)} {
        for (unsigned i = 0; i < count_; ++i)
            driver_.start_queue(i, 16);
    }

    void step() {
        switch (input_.number(1) % 16) {
        case 0: return start();
        case 1: return put_ring_bytes();
        case 2:
        case 3: return put_descriptor();
        case 4:
        case 5: return driver_.make_available(queue(), half());
        case 6: return driver_.put(driver_.queue(queue()).available() + 2, half());
        case 7:
        case 8: return driver_.notify(queue());
        case 9: return driver_.run();
        case 10: return touch_config();
        case 11: return driver_.write(input_.number(1) % 0x40, size(), input_.number(4));
        case 12: return arrive();
        case 13: return put_buffer();
        case 14: return rest();
        default: return save_and_load();
        }
    }

private:
    unsigned queue() { return static_cast<unsigned>(input_.number(1)) % count_; }
    std::uint16_t half() { return static_cast<std::uint16_t>(input_.number(2)); }
    std::uint8_t size() { return static_cast<std::uint8_t>(1u << input_.number(1) % 3); }

    void start() {
        const auto unwanted = input_.number(8);
        const auto features = (driver_.offered() & ~unwanted) | VIRTIO_F_VERSION_1;
        driver_.start(features, static_cast<std::uint16_t>(1u << input_.number(1) % 9));
    }

    void put_ring_bytes() {
        const auto base = driver_.queue(queue()).base;
        const auto at = base + input_.number(1) % 4 * 0x4000 + input_.number(1);
        driver_.put(at, static_cast<std::uint32_t>(input_.number(4)));
    }

    /// In the queue's own table, or in a buffer, for an indirect one.
    void put_descriptor() {
        const auto number = input_.number(1);
        const auto& q = driver_.queue(queue());
        const auto table = number < 0xe0 ? q.descriptors() : kBuffers + number % 16 * kBufferBytes;
        const auto flags = input_.number(1);
        const auto bytes =
            static_cast<std::uint32_t>((flags & 0x80) != 0 ? input_.number(4) : input_.number(2));
        const auto gpa = address(input_);
        driver_.put_descriptor(table + number % 16 * 16, {gpa, bytes, (flags & 2) != 0},
                               (flags & 1) != 0, static_cast<std::uint16_t>(input_.number(1)),
                               flags & 4);
    }

    void put_buffer() {
        const auto at = kBuffers + input_.number(1) % 16 * kBufferBytes;
        const auto bytes = input_.number(1) % 32;
        for (std::uint64_t i = 0; i < bytes; ++i)
            driver_.put(at + i, static_cast<std::uint8_t>(input_.number(1)));
    }

    void touch_config() {
        const auto at = VirtioPci::kDeviceConfig + input_.number(1);
        const auto bytes = size();
        if (input_.number(1) % 2 == 0)
            driver_.read(at, bytes);
        else
            driver_.write(at, bytes, input_.number(4));
    }

    /// Something comes from outside: a frame, a line of text.
    void arrive() {
        std::vector<std::byte> bytes(input_.number(2) % 2048);
        for (std::size_t i = 0; i < std::min<std::size_t>(bytes.size(), 12); ++i)
            bytes[i] = static_cast<std::byte>(input_.number(1));
        backends_.network.send(bytes);
        backends_.console.write(bytes);
    }

    void rest() {
        driver_.function().pause();
        driver_.run();
        driver_.function().resume();
    }

    /// The device alone: its PCI function's registers are for the other fuzzer.
    void save_and_load() {
        auto& device = driver_.function().device();
        device.pause();
        state::Encoder saved;
        device.save(saved);
        const auto bytes = saved.take();
        if (!device.check(state::Decoder{bytes}))
            std::abort();
        device.load(state::Decoder{bytes});
        device.resume();
    }

    Backends& backends_;
    Input& input_;
    TestDriver driver_;
    const std::uint32_t count_;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    base::set_log_level(base::LogLevel::Off);
    Input input{std::as_bytes(std::span{data, size})};
    VirtioMachine machine;
    Backends backends{machine};
    Fuzzer fuzzer{machine, backends, input};
    while (!input.empty())
        fuzzer.step();
    return 0;
}
