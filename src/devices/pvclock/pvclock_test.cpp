// SPDX-License-Identifier: Apache-2.0
/// The guest's side is written down here as Linux 6.1 Documentation/virt/kvm/x86/msr.rst says it.
#include <doctest/doctest.h>

#include <cmath>

#include "devices/pvclock/pvclock.hpp"
#include "devices/test_rig.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

constexpr std::uint32_t kSystem = PvClock::MSR_KVM_SYSTEM_TIME_NEW;
constexpr std::uint32_t kWall = PvClock::MSR_KVM_WALL_CLOCK_NEW;

struct TimeInfo {
    std::uint32_t version;
    std::uint32_t pad0;
    std::uint64_t tsc_timestamp;
    std::uint64_t system_time;
    std::uint32_t tsc_to_system_mul;
    std::int8_t tsc_shift;
    std::uint8_t flags;
    std::uint8_t pad[2];
};
static_assert(sizeof(TimeInfo) == 32);

struct WallInfo {
    std::uint32_t version, seconds, nanoseconds;
};

struct Rig {
    base::ManualTime time;
    test::FixedWallClock wall;
    test::FakeGuestTsc tsc{time};
    memory::RamRegion region{{0}, 1 << 20};
    std::unique_ptr<memory::GuestMemory> memory = memory::GuestMemory::create({&region, 1}).value();
    PvClock clock{4, *memory, tsc, time, wall};

    TimeInfo page(std::uint64_t at) { return memory->load<TimeInfo>({at}).value_or(TimeInfo{}); }
    std::uint64_t guest_ns(unsigned vcpu, std::uint64_t at) {
        const auto info = page(at);
        auto ticks = tsc.read(vcpu) - info.tsc_timestamp;
        if (info.tsc_shift < 0)
            ticks >>= -info.tsc_shift;
        else
            ticks <<= info.tsc_shift;
        __extension__ using Wide = unsigned __int128;
        return info.system_time +
               static_cast<std::uint64_t>(Wide{ticks} * info.tsc_to_system_mul >> 32);
    }
};

} // namespace

TEST_CASE("pvclock: the scale is as exact as 32 bits allow") {
    for (const std::uint64_t hz : {1'000'000ull, 999'999'999ull, 1'000'000'000ull, 1'000'000'001ull,
                                   1'193'182ull, 2'000'000'000ull, 2'592'013'007ull,
                                   3'000'000'000ull, 4'000'000'000ull, 5'123'456'789ull}) {
        CAPTURE(hz);
        const auto scale = TimeScale::of(hz);
        CHECK(scale.mul >= 1u << 31);
        const double rate = std::ldexp(scale.mul, scale.shift - 32) * static_cast<double>(hz) / 1e9;
        CHECK(rate <= 1.0 + 1e-15);
        CHECK(rate > 1.0 - std::ldexp(1.0, -31));
    }
    CHECK(TimeScale::of(2'000'000'000).mul == 1u << 31); // 0.5 ns a tick, without error
    CHECK(TimeScale::of(2'000'000'000).shift == 0);
    CHECK(TimeScale::of(2'000'000'000).to_ns(12'345'678) == 6'172'839);
}

TEST_CASE_FIXTURE(Rig, "pvclock: the guest computes VM time from its TSC") {
    time.advance_to(5'000'000'123);
    REQUIRE(clock.write_msr(0, kSystem, 0x1000 | 1));
    CHECK(page(0x1000).version == 2);
    CHECK(page(0x1000).flags == 1);
    CHECK(page(0x1000).system_time == 5'000'000'123);
    CHECK(guest_ns(0, 0x1000) == 5'000'000'123);
    time.advance_to(3'600'000'000'000);
    CHECK(guest_ns(0, 0x1000) == 3'600'000'000'000);
    CHECK(clock.read_msr(0, kSystem) == 0x1001);
}

TEST_CASE_FIXTURE(Rig, "pvclock: an hour at an awkward frequency stays within a microsecond") {
    tsc.hz = 2'592'013'007;
    PvClock other{1, *memory, tsc, time, wall};
    REQUIRE(other.write_msr(0, kSystem, 0x1001));
    time.advance_to(3'600'000'000'000);
    CHECK(guest_ns(0, 0x1000) <= 3'600'000'000'000);
    CHECK(guest_ns(0, 0x1000) > 3'600'000'000'000 - 2'000);
}

TEST_CASE_FIXTURE(Rig, "pvclock: vCPUs agree however far apart they came up") {
    REQUIRE(clock.write_msr(0, kSystem, 0x1001));
    time.advance_to(7'777'777'777);
    REQUIRE(clock.write_msr(3, kSystem, 0x2041));
    CHECK(page(0x2040).tsc_timestamp == page(0x1000).tsc_timestamp);
    CHECK(page(0x2040).system_time == page(0x1000).system_time);
    CHECK(guest_ns(3, 0x2040) == guest_ns(0, 0x1000));
    CHECK(clock.read_msr(1, kSystem) == 0);
    CHECK(clock.read_msr(3, kSystem) == 0x2041);
}

TEST_CASE_FIXTURE(Rig, "pvclock: TSCs apart: each page its own, and not stable") {
    REQUIRE(clock.write_msr(0, kSystem, 0x1001));
    REQUIRE(clock.write_msr(1, kSystem, 0x2001));
    time.advance_to(1'000'000);
    tsc.offsets[1] = 999'999;
    clock.refresh();
    CHECK(page(0x1000).flags == 0);
    CHECK(page(0x2000).flags == 0);
    CHECK(page(0x2000).version == 4);
    time.advance_to(2'000'000);
    CHECK(guest_ns(0, 0x1000) == 2'000'000);
    CHECK(guest_ns(1, 0x2000) == 2'000'000);
}

TEST_CASE_FIXTURE(Rig, "pvclock: a refresh never turns the guest's clock back") {
    REQUIRE(clock.write_msr(0, kSystem, 0x1001));
    tsc.lead_ticks = 4'000; // the TSC ran 2 us ahead of the host's clock
    time.advance_to(1'000'000);
    const auto before = guest_ns(0, 0x1000);
    CHECK(before == 1'002'000);
    clock.refresh();
    CHECK(guest_ns(0, 0x1000) == before);
    tsc.lead_ticks = 40'000'000'000; // the guest set its TSC: the clock does not follow
    clock.refresh();
    CHECK(guest_ns(0, 0x1000) == 1'000'000);
}

TEST_CASE_FIXTURE(Rig, "pvclock: disabling stops the updates") {
    REQUIRE(clock.write_msr(0, kSystem, 0x1001));
    REQUIRE(clock.write_msr(0, kSystem, 0x1000));
    clock.refresh();
    CHECK(page(0x1000).version == 2);
    CHECK(clock.read_msr(0, kSystem) == 0x1000);
}

TEST_CASE_FIXTURE(Rig, "pvclock: the version goes on from what it finds, odd or even") {
    for (const std::uint32_t found : {0u, 1u, 2u, 7u, 0xffff'fffeu, 0xffff'ffffu}) {
        CAPTURE(found);
        REQUIRE(memory->store<std::uint32_t>({0x3000}, found));
        REQUIRE(clock.write_msr(0, kSystem, 0x3001));
        CHECK(page(0x3000).version % 2 == 0);
        CHECK(page(0x3000).version != found);
    }
}

TEST_CASE_FIXTURE(Rig, "pvclock: the wall clock is the calendar at system time 0") {
    wall.time = {1'709'251'198, 250'000'000};
    time.advance_to(10'500'000'000);
    REQUIRE(clock.write_msr(0, kWall, 0x4000));
    const auto info = memory->load<WallInfo>({0x4000}).value_or(WallInfo{});
    CHECK(info.version == 2);
    CHECK(info.seconds == 1'709'251'187);
    CHECK(info.nanoseconds == 750'000'000);
    CHECK(clock.read_msr(2, kWall) == 0x4000);
    REQUIRE(clock.write_msr(1, kWall, 0)); // no address: nothing is written
    CHECK(memory->load<std::uint32_t>({0}) == 0);
}

TEST_CASE_FIXTURE(Rig, "pvclock: the legacy numbers are the same registers") {
    REQUIRE(clock.write_msr(1, PvClock::MSR_KVM_SYSTEM_TIME, 0x1001));
    CHECK(clock.read_msr(1, kSystem) == 0x1001);
    REQUIRE(clock.write_msr(1, PvClock::MSR_KVM_WALL_CLOCK, 0x4000));
    CHECK(clock.read_msr(0, kWall) == 0x4000);
}

TEST_CASE_FIXTURE(Rig, "pvclock: other MSRs of the family are refused") {
    for (const std::uint32_t index :
         {0x10u, 0x13u, 0x4b56'4d02u, 0x4b56'4d03u, 0x4b56'4d04u, 0x4b56'4d05u, 0x4b56'4dffu}) {
        CHECK(!clock.read_msr(0, index));
        CHECK(!clock.write_msr(0, index, 0));
    }
    CHECK(!clock.write_msr(4, kSystem, 1)); // no such vCPU
    CHECK(!clock.read_msr(4, kSystem));
}

TEST_CASE_FIXTURE(Rig, "pvclock: addresses outside RAM are taken and left alone") {
    for (const std::uint64_t at : {std::uint64_t{(1 << 20) - 16}, std::uint64_t{1 << 20},
                                   std::uint64_t{0xffff'ffff'ffff'fff0}}) {
        CHECK(clock.write_msr(0, kSystem, at | 1));
        CHECK(clock.write_msr(0, kWall, at + 8));
    }
    CHECK(memory->load<std::uint64_t>({(1 << 20) - 16}) == 0); // not even half a page
}

TEST_CASE_FIXTURE(Rig, "pvclock: a state of another number of vCPUs is refused") {
    PvClock two{2, *memory, tsc, time, wall};
    state::Encoder encoder;
    two.save(encoder);
    state::Decoder decoder{encoder.bytes()};
    CHECK(!clock.load(decoder));
}

TEST_CASE_FIXTURE(Rig,
                  "pvclock: a guest whose time has jumped is told once, on every vCPU's page") {
    constexpr std::uint8_t kStable = 1, kStopped = 2; // PVCLOCK_TSC_STABLE_BIT, _GUEST_STOPPED
    for (unsigned vcpu = 0; vcpu < 4; ++vcpu)
        REQUIRE(clock.write_msr(vcpu, kSystem, (0x1000 + vcpu * 0x40) | 1));
    const auto before = guest_ns(0, 0x1000);
    time.advance_to(time.now_ns() + 3600ull * 1'000'000'000);
    clock.refresh(PvClock::Time::Jumped);
    for (unsigned vcpu = 0; vcpu < 4; ++vcpu) {
        CHECK(page(0x1000 + vcpu * 0x40).flags == (kStable | kStopped));
        CHECK(guest_ns(vcpu, 0x1000 + vcpu * 0x40) - before >= 3599ull * 1'000'000'000);
    }
    clock.refresh();
    CHECK(page(0x1000).flags == kStable);
}
