// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The devices that the generic state test runs over, and the small world they live in there.
/// Test code only; owner thread only.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/verify.hpp"
#include "block/memory/memory_node.hpp"
#include "devices/apic/io_apic.hpp"
#include "devices/apic/local_apic.hpp"
#include "devices/device.hpp"
#include "devices/hpet/hpet.hpp"
#include "devices/legacy/acpi_pm.hpp"
#include "devices/legacy/cmos_rtc.hpp"
#include "devices/legacy/debug_console.hpp"
#include "devices/legacy/debug_exit.hpp"
#include "devices/legacy/fw_cfg.hpp"
#include "devices/legacy/i8042.hpp"
#include "devices/legacy/pic8259.hpp"
#include "devices/legacy/pit8254.hpp"
#include "devices/legacy/reset_control.hpp"
#include "devices/legacy/uart16550.hpp"
#include "devices/pci/config_access.hpp"
#include "devices/pci/host_bridge.hpp"
#include "devices/pci/test_function.hpp"
#include "devices/pvclock/pvclock.hpp"
#include "devices/test_rig.hpp"
#include "devices/virtio/virtio_blk.hpp"
#include "devices/virtio/virtio_console.hpp"
#include "devices/virtio/virtio_net.hpp"
#include "devices/virtio/virtio_pci.hpp"
#include "devices/virtio/virtio_rng.hpp"
#include "net/frame_queue.hpp"

namespace doppel::devices::test {

struct World {
    base::ManualTime time;
    FixedWallClock wall;
    FakeIrqSink irqs;
    CollectingSink sink;
    FakeSource source;
    FakeTsc tsc{time};
    FakeGuestTsc guest_tsc{time};
    memory::RamRegion region{{0}, 1 << 20};
    std::unique_ptr<memory::GuestMemory> memory = memory::GuestMemory::create({&region, 1}).value();
    std::unique_ptr<base::EventLoop> worker = base::EventLoop::create().value();
    std::vector<std::unique_ptr<block::Drive>> drives{};
    std::vector<std::unique_ptr<net::Backend>> networks{};
    std::vector<std::unique_ptr<chardev::Backend>> consoles{};
    std::vector<std::unique_ptr<ApicBus>> apic_buses{}; // outlive the APICs on them
    std::vector<std::unique_ptr<bus::IoHandler>> doors{};
    std::vector<std::unique_ptr<PciRig>> pci_rigs{}; // outlive the functions on their buses
};

/// A local APIC's registers as the random guest reaches them: MMIO and, in the upper half, MSRs.
struct ApicDoor final : bus::IoHandler {
    LocalApic& apic;
    explicit ApicDoor(LocalApic& a) : apic{a} {}
    std::uint64_t io_read(bus::IoAccess io) override {
        if (io.offset < 0x400)
            return apic.mmio_read(static_cast<std::uint32_t>(io.offset));
        return apic.read_msr(msr(io.offset)).value_or(0);
    }
    void io_write(bus::IoAccess io, std::uint64_t value) override {
        if (io.offset < 0x400)
            apic.mmio_write(static_cast<std::uint32_t>(io.offset),
                            static_cast<std::uint32_t>(value));
        else
            apic.write_msr(msr(io.offset), value);
        apic.acknowledge_intr();
    }
    static std::uint32_t msr(std::uint64_t offset) {
        const auto number = static_cast<std::uint32_t>(offset - 0x400) / 8;
        return number == 0x7e ? 0x1b : number == 0x7f ? 0x6e0 : 0x800 + number;
    }
};

/// Where the random guest may poke: sizes are min_size << 0 … size_steps - 1.
struct Range {
    bus::IoHandler* handler;
    std::uint64_t bytes;
    std::uint8_t min_size = 1;
    std::uint8_t size_steps = 1;
};

struct Subject {
    std::unique_ptr<Device> device;
    std::vector<Range> ranges;
};

struct Entry {
    std::string name; // of the class
    std::function<Subject(World&)> make;
    bool keeps_state_on_reset = false; // battery-backed contents
};

inline std::vector<Entry> port_devices() {
    return {
        {"DebugExit",
         [](World&) -> Subject {
             auto d = std::make_unique<DebugExit>([](int) {});
             auto* const io = d.get();
             return {std::move(d), {{io, 4, 1, 3}}};
         }},
        {"DebugConsole",
         [](World& w) -> Subject {
             auto d = std::make_unique<DebugConsole>(w.sink);
             auto* const io = d.get();
             return {std::move(d), {{io, 1}}};
         }},
        {"ResetControl",
         [](World&) -> Subject {
             auto d = std::make_unique<ResetControl>([] {});
             auto* const io = d.get();
             return {std::move(d), {{io, 1}}};
         }},
        {"FwCfg",
         [](World& w) -> Subject {
             auto d = std::make_unique<FwCfg>(*w.memory);
             auto* const io = d.get();
             return {std::move(d), {{io, FwCfg::kPortBytes, 1, 3}}};
         }},
        {"I8042",
         [](World& w) -> Subject {
             auto d = std::make_unique<I8042>(w.irqs.line(), I8042::Pins{});
             std::vector<Range> ranges{{&d->data(), 1}, {&d->command(), 1}, {&d->port92(), 1}};
             return {std::move(d), ranges};
         }},
        {"Uart16550",
         [](World& w) -> Subject {
             auto d = std::make_unique<Uart16550>(w.irqs.line(), w.sink, &w.source, w.time);
             auto* const io = d.get();
             for (const char c : std::string{"some input"})
                 d->receive(std::as_bytes(std::span{&c, 1}));
             return {std::move(d), {{io, 8}}};
         }},
    };
}

inline std::vector<Entry> time_devices() {
    return {
        {"Pit8254",
         [](World& w) -> Subject {
             auto d = std::make_unique<Pit8254>(w.irqs.line(), w.time);
             std::vector<Range> ranges{{&d->counters(), 4}, {&d->port61(), 1}};
             return {std::move(d), ranges};
         }},
        {"CmosRtc",
         [](World& w) -> Subject {
             auto d = std::make_unique<CmosRtc>(w.irqs.line(), w.wall, w.time);
             auto* const io = d.get();
             return {std::move(d), {{io, 2}}};
         },
         true},
        {"AcpiPm",
         [](World& w) -> Subject {
             auto d =
                 std::make_unique<AcpiPm>(w.irqs.line(), w.time, AcpiPm::TimerWidth::Bits24, [] {});
             std::vector<Range> ranges{{&d->block(), AcpiPm::kBlockBytes, 1, 3},
                                       {&d->gpe0(), AcpiPm::kGpeBytes, 1, 3}};
             return {std::move(d), ranges};
         }},
        {"Hpet",
         [](World& w) -> Subject {
             auto d = std::make_unique<Hpet>(
                 Hpet::Wires{&w.irqs, 0x00f0'0000, w.irqs.line(0), w.irqs.line(8)}, w.time);
             auto* const io = d.get();
             return {std::move(d), {{io, 0x160, 4, 2}}};
         }},
    };
}

/// Four MSRs of each of two vCPUs, eight bytes each; guests give addresses within RAM more often.
struct PvClockDoor final : bus::IoHandler {
    PvClock& clock;
    explicit PvClockDoor(PvClock& c) : clock{c} {}
    static std::uint32_t msr(std::uint64_t offset) {
        const std::uint32_t legacy = 0x11 + (offset >> 3 & 1);
        return (offset & 16) != 0 ? 0x4b56'4cef + legacy : legacy;
    }
    std::uint64_t io_read(bus::IoAccess io) override {
        return clock.read_msr(io.offset >> 5 & 1, msr(io.offset)).value_or(0);
    }
    void io_write(bus::IoAccess io, std::uint64_t value) override {
        clock.write_msr(io.offset >> 5 & 1, msr(io.offset), value);
        if (value % 8 == 0)
            clock.refresh();
    }
};

inline std::vector<Entry> paravirtual_devices() {
    return {
        {"PvClock",
         [](World& w) -> Subject {
             auto d = std::make_unique<PvClock>(2, *w.memory, w.guest_tsc, w.time, w.wall);
             auto& door = *w.doors.emplace_back(std::make_unique<PvClockDoor>(*d));
             return {std::move(d), {{&door, 64, 8}}};
         }},
    };
}

inline std::vector<Entry> interrupt_devices() {
    return {
        {"Pic8259",
         [](World& w) -> Subject {
             auto d = std::make_unique<Pic8259>(w.irqs.line());
             std::vector<Range> ranges{{&d->master(), 2}, {&d->slave(), 2}, {&d->elcr(), 2}};
             d->set_irq_level(4, true);
             d->set_irq_level(14, true);
             return {std::move(d), ranges};
         }},
        {"IoApic",
         [](World& w) -> Subject {
             auto& apics = *w.apic_buses.emplace_back(std::make_unique<ApicBus>());
             auto d = std::make_unique<IoApic>(apics);
             auto* const io = d.get();
             d->set_irq_level(5, true);
             return {std::move(d), {{io, 0x50, 1, 3}}};
         }},
        {"LocalApic",
         [](World& w) -> Subject {
             auto& apics = *w.apic_buses.emplace_back(std::make_unique<ApicBus>());
             auto d = std::make_unique<LocalApic>(LocalApic::Config{.is_boot_cpu = true}, apics,
                                                  w.time, &w.tsc, nullptr);
             d->write_msr(0x1b, 0xfee0'0d00); // half of the random guests work in x2APIC mode
             auto& door = *w.doors.emplace_back(std::make_unique<ApicDoor>(*d));
             return {std::move(d), {{&door, 0x800, 4, 2}}};
         }},
    };
}

/// On a bus of its own at 00:00.0: configuration space and, through the first BAR, the rest.
inline Subject pci_subject(World& w, std::unique_ptr<PciDevice> device) {
    auto& rig = *w.pci_rigs.emplace_back(std::make_unique<PciRig>());
    auto& door = *w.doors.emplace_back(std::make_unique<BarDoor>(rig));
    DOPPEL_VERIFY(rig.bus.add({}, *device), "an empty bus");
    std::vector<Range> ranges{{&rig.ecam, 256, 1, 3}, {&door, 0x4000, 4, 2}, {&door, 16, 4}};
    return {std::move(device), ranges};
}

inline std::vector<Entry> pci_devices() {
    return {
        {"PciConfigPorts",
         [](World& w) -> Subject {
             auto& rig = *w.pci_rigs.emplace_back(std::make_unique<PciRig>());
             auto d = std::make_unique<PciConfigPorts>(rig.bus, nullptr);
             auto* const io = d.get();
             return {std::move(d), {{io, 8, 1, 3}, {io, 4, 4}}};
         }},
        {"PciBridge",
         [](World& w) { return pci_subject(w, std::make_unique<PciBridge>(PciBridge::kHost)); }},
        {"TestFunction", [](World& w) { return pci_subject(w, std::make_unique<TestFunction>()); }},
    };
}

/// The worker does what is due whenever the guest looks.
struct WorkerDoor final : bus::IoHandler {
    bus::IoHandler& door;
    base::EventLoop& worker;
    WorkerDoor(bus::IoHandler& d, base::EventLoop& w) : door{d}, worker{w} {}
    std::uint64_t io_read(bus::IoAccess io) override {
        worker.run_ready();
        return door.io_read(io);
    }
    void io_write(bus::IoAccess io, std::uint64_t value) override { door.io_write(io, value); }
};

/// Configuration space, all of the first BAR, and its common structure by itself.
inline Subject virtio_subject(World& w, std::unique_ptr<VirtioDevice> device) {
    auto& rig = *w.pci_rigs.emplace_back(std::make_unique<PciRig>());
    auto& door = *w.doors.emplace_back(std::make_unique<BarDoor>(rig));
    auto& worker = *w.doors.emplace_back(std::make_unique<WorkerDoor>(door, *w.worker));
    auto function = std::make_unique<VirtioPci>(std::move(device));
    DOPPEL_VERIFY(rig.bus.add({}, *function), "an empty bus");
    std::vector<Range> ranges{
        {&rig.ecam, 256, 1, 3}, {&worker, VirtioPci::kBarBytes, 1, 3}, {&worker, 0x38, 1, 3}};
    return {std::move(function), ranges};
}

/// A network on which what one sends comes back.
struct EchoNetwork final : net::Backend {
    net::FrameReceiver* card = nullptr;
    net::FrameQueue queue{};
    base::EventLoop& loop;
    std::uint64_t poll = loop.add_poll([this] {
        if (card != nullptr && !queue.empty())
            queue.offer(*card);
        return false;
    });
    explicit EchoNetwork(base::EventLoop& l) : loop{l} {}
    ~EchoNetwork() override { loop.remove_poll(poll); }
    void set_receiver(net::FrameReceiver* receiver) noexcept override { card = receiver; }
    void receiver_ready() noexcept override {}
    void send(net::Frame frame) noexcept override {
        const bool merges = card != nullptr && card->takes_merged_segments();
        queue.push(frame, merges ? net::FrameQueue::Merge::Segments : net::FrameQueue::Merge::No);
    }
    bool takes_long_segments() const noexcept override { return true; }
    bool gives_verified_frames() const noexcept override { return true; }
};

/// A console on which what one prints is typed.
struct EchoConsole final : chardev::Backend {
    chardev::ByteReceiver* device = nullptr;
    void write(std::span<const std::byte> bytes) noexcept override {
        if (device != nullptr)
            device->receive(bytes.first(std::min(bytes.size(), device->can_receive())));
    }
    void set_receiver(chardev::ByteReceiver* receiver) noexcept override { device = receiver; }
    void receiver_ready() noexcept override {}
};

inline std::vector<Entry> virtio_devices() {
    const auto rng = [](World& w) {
        return virtio_subject(w, std::make_unique<VirtioRng>(*w.memory, *w.worker));
    };
    const auto blk = [](World& w) {
        auto& drive = *w.drives.emplace_back(std::make_unique<block::Drive>(
            std::make_unique<block::MemoryNode>(std::vector<std::byte>(1u << 16))));
        return virtio_subject(
            w, std::make_unique<VirtioBlk>(drive, VirtioBlk::Options{}, *w.memory, *w.worker));
    };
    const auto net = [](World& w) {
        auto& network = *w.networks.emplace_back(std::make_unique<EchoNetwork>(*w.worker));
        return virtio_subject(
            w, std::make_unique<VirtioNet>(network, VirtioNet::Options{.mac = {2, 0, 0, 0, 0, 1}},
                                           *w.memory, *w.worker));
    };
    const auto console = [](World& w) {
        auto& backend = *w.consoles.emplace_back(std::make_unique<EchoConsole>());
        return virtio_subject(w, std::make_unique<VirtioConsole>(backend, *w.memory, *w.worker));
    };
    return {{"VirtioPci", rng},
            {"VirtioRng", rng},
            {"VirtioBlk", blk},
            {"VirtioNet", net},
            {"VirtioConsole", console}};
}

inline std::vector<Entry> all_devices() {
    std::vector<Entry> all;
    for (const auto& group : {port_devices(), time_devices(), interrupt_devices(), pci_devices(),
                              paravirtual_devices(), virtio_devices()})
        all.insert(all.end(), group.begin(), group.end());
    return all;
}

} // namespace doppel::devices::test
