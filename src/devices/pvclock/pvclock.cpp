// SPDX-License-Identifier: Apache-2.0
#include "devices/pvclock/pvclock.hpp"

#include <algorithm>
#include <array>
#include <atomic>

#include "base/bytes.hpp"
#include "base/verify.hpp"

namespace doppel::devices {

namespace {

constexpr std::uint64_t kEnable = 1; // bit 0 of the system time MSR
constexpr std::uint8_t PVCLOCK_TSC_STABLE_BIT = 1, PVCLOCK_GUEST_STOPPED = 2; // of the flags
constexpr std::uint64_t kSecond = 1'000'000'000;

// struct pvclock_vcpu_time_info: 32 bytes.
constexpr std::size_t kTscTimestamp = 8, kSystemTime = 16, kTscToSystemMul = 24, kTscShift = 28,
                      kFlags = 29, kTimePageBytes = 32;
// struct pvclock_wall_clock: 12 bytes.
constexpr std::size_t kWallSeconds = 4, kWallNanoseconds = 8, kWallClockBytes = 12;

/// Writes a structure that begins with a 32-bit version, odd while the rest changes. Whoever was
/// there before us may have left any version: an odd one counts as even.
void publish(memory::GuestMemory& memory, memory::Gpa gpa, std::span<std::byte> bytes) noexcept {
    const auto found = memory.load<std::uint32_t>(gpa);
    if (!found || !memory.contains(gpa, bytes.size()))
        return;
    const std::uint32_t changing = (*found + 1) | 1;
    if (!memory.store(gpa, changing))
        return;
    std::atomic_thread_fence(std::memory_order_release);
    const auto content = bytes.subspan(sizeof changing);
    if (!memory.write(gpa + sizeof changing, content))
        return;
    std::atomic_thread_fence(std::memory_order_release);
    static_cast<void>(memory.store(gpa, changing + 1));
}

} // namespace

PvClock::PvClock(unsigned vcpus, memory::GuestMemory& memory, const GuestTsc& tsc,
                 const base::Clock& clock, const base::WallClock& wall_clock)
    : vcpus_{vcpus}, memory_{memory}, tsc_{tsc}, clock_{clock}, wall_clock_{wall_clock},
      scale_{TimeScale::of(std::max<std::uint64_t>(tsc.frequency_hz(), 1))} {
    DOPPEL_VERIFY(tsc.frequency_hz() != 0, "a TSC that counts");
    state_.system_time.assign(vcpus_, 0);
}

void PvClock::reset() {
    const base::MutexLock lock{mutex_};
    state_ = {};
    state_.system_time.assign(vcpus_, 0);
}

base::Result<void> PvClock::check(const State& state) const {
    if (state.system_time.size() != vcpus_)
        return base::fail(base::Errc::Corrupt, "clock pages of another number of vCPUs");
    return {};
}

// --- MSRs -------------------------------------------------------------------------------------

std::optional<std::uint64_t> PvClock::read_msr(unsigned vcpu, std::uint32_t index) const noexcept {
    if (vcpu >= vcpus_)
        return std::nullopt;
    const base::MutexLock lock{mutex_};
    switch (index) {
    case MSR_KVM_WALL_CLOCK:
    case MSR_KVM_WALL_CLOCK_NEW: return state_.wall_clock;
    case MSR_KVM_SYSTEM_TIME:
    case MSR_KVM_SYSTEM_TIME_NEW: return state_.system_time[vcpu];
    default: return std::nullopt;
    }
}

bool PvClock::write_msr(unsigned vcpu, std::uint32_t index, std::uint64_t value) noexcept {
    if (vcpu >= vcpus_)
        return false;
    const base::MutexLock lock{mutex_};
    switch (index) {
    case MSR_KVM_WALL_CLOCK:
    case MSR_KVM_WALL_CLOCK_NEW:
        state_.wall_clock = value;
        write_wall_clock();
        return true;
    case MSR_KVM_SYSTEM_TIME:
    case MSR_KVM_SYSTEM_TIME_NEW:
        if (!has_time_page())
            update_master();
        state_.system_time[vcpu] = value;
        write_time_page(vcpu);
        return true;
    default: return false;
    }
}

// --- time -------------------------------------------------------------------------------------

bool PvClock::has_time_page() const {
    return std::ranges::any_of(state_.system_time, [](auto msr) { return (msr & kEnable) != 0; });
}

/// A new pair of readings must not turn the guest's clock back by what the scale or the host's
/// clock discipline made the old pair run ahead. A gap of a second is something else: the TSC was
/// set.
void PvClock::update_master() {
    const auto tsc = tsc_.read(0);
    auto ns = clock_.now_ns();
    if (has_time_page() && tsc >= state_.master_tsc) {
        const auto shown = state_.master_ns + scale_.to_ns(tsc - state_.master_tsc);
        if (shown > ns && shown - ns < kSecond)
            ns = shown;
    }
    state_.master_tsc = tsc;
    state_.master_ns = ns;
}

void PvClock::refresh(Time time) noexcept {
    const base::MutexLock lock{mutex_};
    update_master();
    for (unsigned vcpu = 0; vcpu < vcpus_; ++vcpu)
        write_time_page(vcpu, time);
}

/// While the TSCs are synchronized all pages hold the same pair, so that vCPUs agree to the last
/// nanosecond and the guest need not compare them (TSC_STABLE).
void PvClock::write_time_page(unsigned vcpu, Time time) {
    const auto msr = state_.system_time[vcpu];
    if ((msr & kEnable) == 0)
        return;
    const bool is_stable = tsc_.is_synchronized();
    std::array<std::byte, kTimePageBytes> page{};
    base::store_le(&page[kTscTimestamp], is_stable ? state_.master_tsc : tsc_.read(vcpu));
    base::store_le(&page[kSystemTime], is_stable ? state_.master_ns : clock_.now_ns());
    base::store_le(&page[kTscToSystemMul], scale_.mul);
    page[kTscShift] = static_cast<std::byte>(scale_.shift);
    page[kFlags] = static_cast<std::byte>((is_stable ? PVCLOCK_TSC_STABLE_BIT : 0) |
                                          (time == Time::Jumped ? PVCLOCK_GUEST_STOPPED : 0));
    publish(memory_, {msr & ~kEnable}, page);
}

/// The calendar at system time 0.
void PvClock::write_wall_clock() {
    if (state_.wall_clock == 0)
        return;
    const auto now = wall_clock_.now();
    const auto calendar = static_cast<std::uint64_t>(now.seconds) * kSecond + now.nanoseconds;
    const auto start = calendar - std::min(calendar, clock_.now_ns());
    std::array<std::byte, kWallClockBytes> bytes{};
    base::store_le(&bytes[kWallSeconds], static_cast<std::uint32_t>(start / kSecond));
    base::store_le(&bytes[kWallNanoseconds], static_cast<std::uint32_t>(start % kSecond));
    publish(memory_, {state_.wall_clock}, bytes);
}

} // namespace doppel::devices
