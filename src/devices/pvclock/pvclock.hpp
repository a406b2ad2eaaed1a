// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Paravirtual clock as Linux guests know it from KVM (Linux 6.1 Documentation/virt/kvm/x86/
/// {msr,cpuid}.rst): the guest computes the time from its TSC and a page that we fill in.
/// Modelled: wall clock and system time MSRs, new and legacy numbers, TSC_STABLE.
/// Not offered (and so refused): asynchronous page faults, steal time, PV EOI, PV spinlocks.
#include <cstdint>
#include <optional>
#include <vector>

#include "base/clock.hpp"
#include "devices/device.hpp"
#include "devices/pvclock/time_scale.hpp"
#include "memory/guest_memory.hpp"

namespace doppel::devices {

/// The TSCs as the guest reads them. Implemented by the board. Any thread.
class GuestTsc {
public:
    virtual ~GuestTsc() = default;
    virtual std::uint64_t read(unsigned vcpu) const noexcept = 0;
    virtual std::uint64_t frequency_hz() const noexcept = 0;
    /// All vCPUs read the same counter: no offset of their own.
    virtual bool is_synchronized() const noexcept = 0;
};

/// Any thread; guarded by the device mutex, which is held while time pages are written, so that
/// no two threads write one at once.
class PvClock final : public StatefulDevice<PvClock> {
public:
    static constexpr std::uint32_t MSR_KVM_WALL_CLOCK = 0x11, MSR_KVM_SYSTEM_TIME = 0x12,
                                   MSR_KVM_WALL_CLOCK_NEW = 0x4b56'4d00,
                                   MSR_KVM_SYSTEM_TIME_NEW = 0x4b56'4d01;
    /// CPUID leaf 4000'0001h, EAX, of a board that has a PvClock: KVM_FEATURE_CLOCKSOURCE,
    /// KVM_FEATURE_CLOCKSOURCE2, KVM_FEATURE_CLOCKSOURCE_STABLE_BIT.
    static constexpr std::uint32_t kCpuidFeatures = 1u << 0 | 1u << 3 | 1u << 24;

    struct State {
        std::uint64_t wall_clock = 0;             // MSR as written
        std::vector<std::uint64_t> system_time{}; // one MSR per vCPU, as written
        std::uint64_t master_tsc = 0;             // while the TSCs are synchronized, all time pages
        std::uint64_t master_ns = 0;              // are made from this one pair of readings
    };
    static constexpr auto kSchema =
        state::schema("pvclock", 1, state::field(1, "wall_clock", &State::wall_clock),
                      state::field(2, "system_time", &State::system_time),
                      state::field(3, "master_tsc", &State::master_tsc),
                      state::field(4, "master_ns", &State::master_ns));

    /// `clock` is what the guest's system time counts; all references outlive the device.
    PvClock(unsigned vcpus, memory::GuestMemory& memory, const GuestTsc& tsc,
            const base::Clock& clock, const base::WallClock& wall_clock);

    /// Empty or false: not one of ours (#GP(0) when nobody else has it). Addresses outside RAM are
    /// taken and nothing is written there.
    std::optional<std::uint64_t> read_msr(unsigned vcpu, std::uint32_t index) const noexcept;
    bool write_msr(unsigned vcpu, std::uint32_t index, std::uint64_t value) noexcept;
    /// After a guest wrote a TSC, and after the VM was loaded: makes all time pages anew. `Jumped`:
    /// time has gone on while the guest could not, so that its watchdogs must not bite.
    enum class Time : std::uint8_t { WentOn, Jumped };
    void refresh(Time time = Time::WentOn) noexcept;

    void reset() override;

private:
    friend StatefulDevice<PvClock>;
    base::Result<void> check(const State& state) const;

    bool has_time_page() const DOPPEL_REQUIRES(mutex_);
    void update_master() DOPPEL_REQUIRES(mutex_);
    void write_time_page(unsigned vcpu, Time time = Time::WentOn) DOPPEL_REQUIRES(mutex_);
    void write_wall_clock() DOPPEL_REQUIRES(mutex_);

    const unsigned vcpus_;
    memory::GuestMemory& memory_;
    const GuestTsc& tsc_;
    const base::Clock& clock_;
    const base::WallClock& wall_clock_;
    const TimeScale scale_;
    State state_ DOPPEL_GUARDED_BY(mutex_);
};

} // namespace doppel::devices
