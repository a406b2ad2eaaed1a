// SPDX-License-Identifier: Apache-2.0
/// The board as a whole: what its address map promises, and that no chip is left out when a VM is
/// saved, reset or moved.
#include <doctest/doctest.h>

#include <array>
#include <optional>
#include <set>

#include "chardev/file_sink.hpp"
#include "description/cpu_model.hpp"
#include "devices/device.hpp"
#include "devices/pvclock/pvclock.hpp"
#include "machine/pc.hpp"
#include "machine/pc_map.hpp"

using namespace doppel;
using namespace doppel::machine;

namespace {

struct FixedCalendar final : base::WallClock {
    Time now() const noexcept override { return {.seconds = 1'700'000'000, .nanoseconds = 0}; }
};

struct SteppedTsc final : cpu::x86::TscSource {
    std::uint64_t ticks = 0;
    std::uint64_t read() const noexcept override { return ticks; }
    std::uint64_t frequency_hz() const noexcept override { return 1'000'000'000; }
    bool is_host_tsc(std::uint64_t&) const noexcept override { return false; }
};

struct Wishes final : PowerSink {
    int power_offs = 0, resets = 0;
    std::optional<int> exit_code;
    void power_off() noexcept override { ++power_offs; }
    void reset_requested() noexcept override { ++resets; }
    void debug_exit(int code) noexcept override { exit_code = code; }
};

struct NoWakeup final : cpu::Wakeup {
    void notify() noexcept override {}
};

struct Rig {
    base::ManualTime time;
    FixedCalendar calendar;
    SteppedTsc tsc;
    chardev::NullBackend console;
    Wishes wishes;
    description::CpuModel model = description::find_cpu_model("x86-64-v2").value();
    std::array<cpu::x86::CpuState, 2> states{};
    NoWakeup wakeup;
    std::unique_ptr<Pc> pc;

    base::Result<void> build(const PcConfig& config) {
        const PcHost host{time, calendar, tsc, console, wishes, model};
        pc = DOPPEL_TRY(Pc::create(config, host));
        for (unsigned i = 0; i < config.cpus; ++i)
            pc->connect(i, wakeup, states.at(i));
        return {};
    }
    ~Rig() {
        if (pc)
            pc->disconnect();
    }
    std::vector<std::byte> saved() {
        state::Encoder to;
        for (const auto& [name, chip] : pc->chips())
            chip->save(to);
        return to.take();
    }
    std::uint8_t in(std::uint16_t port) {
        return static_cast<std::uint8_t>(pc->wiring(0).pio->read(port, 1));
    }
    void out(std::uint16_t port, std::uint8_t value) { pc->wiring(0).pio->write(port, 1, value); }
};

constexpr std::uint64_t kGib = std::uint64_t{1} << 30;

} // namespace

TEST_CASE_FIXTURE(Rig, "every chip has a name of its own, and every local APIC is among them") {
    REQUIRE(build({.memory_bytes = 16 << 20, .cpus = 2, .debug_exit_port = 0xf4}));
    std::set<std::string> names;
    for (const auto& [name, chip] : pc->chips())
        CHECK(names.insert(name).second);
    for (const char* name : {"local-apic-0", "local-apic-1", "com1", "debug-exit", "pvclock"})
        CHECK(names.contains(name));
}

TEST_CASE_FIXTURE(Rig, "the whole board: save, load into a fresh one, save gives the same bytes") {
    const PcConfig config{.memory_bytes = 16 << 20, .cpus = 2, .debug_exit_port = 0xf4};
    REQUIRE(build(config));
    const auto fresh = saved();
    out(pc::kCom1 + 7, 0x5a);      // scratch register
    out(pc::kPicMaster + 1, 0xf0); // interrupt mask
    out(pc::kRtc, 0x20);
    out(pc::kRtc + 1, 0x77); // battery-backed
    const auto used = saved();
    CHECK(used != fresh);
    Rig other;
    REQUIRE(other.build(config));
    state::Decoder from{used};
    for (const auto& [name, chip] : other.pc->chips()) {
        CAPTURE(name);
        REQUIRE(chip->load(from));
    }
    CHECK(from.remaining() == 0);
    CHECK(other.saved() == used);
    CHECK(other.in(pc::kCom1 + 7) == 0x5a);
}

TEST_CASE_FIXTURE(Rig, "a reset forgets everything but what has a battery") {
    REQUIRE(build({.memory_bytes = 16 << 20, .cpus = 1, .debug_exit_port = {}}));
    const auto fresh = saved();
    out(pc::kRtc, 0x20);
    const auto index = saved();
    out(pc::kPicMaster + 1, 0xf0);
    out(pc::kCom1 + 7, 0x5a);
    pc->reset();
    CHECK(in(pc::kPicMaster + 1) == 0);
    CHECK(in(pc::kCom1 + 7) == 0);
    CHECK(saved() == fresh);
    CHECK(index != fresh);
}

TEST_CASE_FIXTURE(Rig, "RAM leaves the holes of the address map alone, whatever its size") {
    for (const std::uint64_t size : {16 * kGib / 1024, 3 * kGib, 5 * kGib}) {
        CAPTURE(size);
        REQUIRE(build({.memory_bytes = size, .cpus = 1, .debug_exit_port = {}}));
        const auto& memory = pc->memory();
        for (const auto hole : {pc::kLowMemoryEnd, pc::kPciWindow, pc::kEcam, pc::kIoApic,
                                pc::kHpet, pc::kLocalApic, pc::kPciWindow64})
            CHECK_FALSE(memory.contains({hole}, 1));
        CHECK(memory.contains({pc::kLowMemoryEnd - 1}, 1));
        CHECK(memory.contains({std::min(size, pc::kLowRamLimit) - 1}, 1));
        CHECK(memory.contains({pc::kHighBase}, 1) == (size > pc::kLowRamLimit));
        pc->disconnect();
    }
}

TEST_CASE_FIXTURE(Rig, "no two devices share a port: a debug-exit port that is taken is refused") {
    for (const std::uint16_t port : {pc::kPicMaster, pc::kPit, pc::kRtc, pc::kCom1, pc::kFwCfg,
                                     pc::kAcpiPm, pc::kPciConfig, pc::kReset}) {
        CAPTURE(port);
        const auto built = build({.memory_bytes = 16 << 20, .cpus = 1, .debug_exit_port = port});
        CHECK_FALSE(built);
    }
    CHECK(build({.memory_bytes = 16 << 20, .cpus = 1, .debug_exit_port = 0xf4}));
}

TEST_CASE_FIXTURE(Rig, "the guest's wishes reach the host") {
    REQUIRE(build({.memory_bytes = 16 << 20, .cpus = 1, .debug_exit_port = 0xf4}));
    out(0xf4, 3);
    CHECK(wishes.exit_code == 7);
    out(pc::kReset, 0x06);
    CHECK(wishes.resets == 1);
    out(pc::kI8042Command, 0xfe);
    CHECK(wishes.resets == 2);
}

TEST_CASE_FIXTURE(Rig, "a guest that writes its TSC gets its kvmclock page anew") {
    using devices::PvClock;
    REQUIRE(build({.memory_bytes = 16 << 20, .cpus = 1, .debug_exit_port = {}}));
    constexpr std::uint64_t kPage = 0x10000;
    auto& msrs = *pc->wiring(0).msrs;
    tsc.ticks = 5000;
    REQUIRE(msrs.write_msr(0, PvClock::MSR_KVM_SYSTEM_TIME_NEW, kPage | 1));
    const auto stamp = [&] { return pc->memory().load<std::uint64_t>({kPage + 8}).value(); };
    CHECK(stamp() == 5000);
    states[0].tsc_offset = 1'000'000; // as WRMSR leaves it
    CHECK(msrs.write_msr(0, 0x10, 1'005'000));
    CHECK(stamp() == 1'005'000);
}

TEST_CASE_FIXTURE(Rig, "a kernel that looks for a BIOS finds its data area and no services") {
    REQUIRE(build({.memory_bytes = 16 << 20, .cpus = 1, .debug_exit_port = {}}));
    std::array<std::byte, 512> sector{};
    sector[510] = std::byte{0x55};
    sector[511] = std::byte{0xaa};
    REQUIRE(pc->boot(
        {.kernel = sector, .kernel_name = {}, .initrd = {}, .command_line = {}, .modules = {}},
        states[0]));
    const auto& memory = pc->memory();
    CHECK(memory.load<std::uint16_t>({0x400}) == pc::kCom1);
    CHECK(memory.load<std::uint16_t>({0x40e}) == pc::kEbda >> 4);
    CHECK(memory.load<std::uint16_t>({0x413}) == 639); // KiB
    for (const std::uint64_t vector : {0x08, 0x10, 0x15, 0x70}) {
        const auto segment = memory.load<std::uint16_t>({vector * 4 + 2}).value();
        const auto offset = memory.load<std::uint16_t>({vector * 4}).value();
        const bool is_service = vector == 0x10 || vector == 0x15;
        const auto first = memory.load<std::uint8_t>({segment * 16u + offset}).value();
        CHECK(first == (is_service ? 0x55 : 0xcf)); // push bp, or iret
    }
}

TEST_CASE_FIXTURE(Rig, "firmware leaves RAM write-back and the PCI hole uncacheable in the MTRRs") {
    REQUIRE(build({.memory_bytes = 16 << 20, .cpus = 2, .debug_exit_port = {}}));
    for (auto& state : states) {
        pc->apply_firmware_state(state);
        CHECK(state.mtrr_def_type == 0xc06);
        CHECK(state.mtrr_fixed[0] == 0x0606'0606'0606'0606);
        CHECK(state.mtrr_fixed[2] == 0); // a0000h
        CHECK(state.mtrr_variable[0] == pc::kPciWindow);
        const auto mask = state.mtrr_variable[1];
        CHECK((mask & 0x800) != 0);
        CHECK((mask >> model.physical_bits) == 0);
        for (const auto address : {pc::kPciWindow, pc::kEcam, pc::kLocalApic, pc::kHighBase - 1})
            CHECK((address & mask & ~0xfffull) == pc::kPciWindow);
        for (const auto address : {std::uint64_t{0}, pc::kPciWindow - 1, pc::kHighBase})
            CHECK((address & mask & ~0xfffull) != pc::kPciWindow);
    }
}
