// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The VM's time-stamp counter on top of the host's: at first the same one, so that users who run
/// on the host's CPU itself may read it. It stands still while the VM is paused, and is then
/// behind; a VM from another host has a frequency of its own.
#include <atomic>
#include <cstdint>

#include "base/clock.hpp"
#include "cpu/x86/board_ports.hpp"

namespace doppel::machine {

/// read() from any thread. Needs an invariant host TSC (every x86-64 server since 2008 has one).
class HostTsc final : public cpu::x86::TscSource {
public:
    /// Measures the host's frequency against CLOCK_MONOTONIC for about 4 ms (to a few parts per
    /// million).
    HostTsc();

    std::uint64_t read() const noexcept override;
    std::uint64_t frequency_hz() const noexcept override { return frequency_hz_; }
    bool is_host_tsc(std::uint64_t& host_offset) const noexcept override;

    /// Control thread, VM paused.
    void pause();
    void resume();
    /// While paused: shows `ticks` of a counter of `frequency_hz`, as a saved VM knew it. A host
    /// whose own counter differs by no more than its crystal may (250 ppm, as KVM has it) is used
    /// as it is, else its counter is scaled.
    void set(std::uint64_t ticks, std::uint64_t frequency_hz);
    /// While paused: the guest will start over. From resume() on it is the host's counter again, at
    /// the frequency that set() has given.
    void reset();

private:
    std::uint64_t scaled(std::uint64_t host) const noexcept;

    const std::uint64_t host_hz_;
    std::uint64_t frequency_hz_;         // as the guest knows it
    std::uint64_t ratio_ = 0;            // guest ticks per 2^40 host ticks; 0: the same
    std::atomic<std::uint64_t> offset_;  // guest = scaled host + offset
    std::atomic<bool> is_paused_{false}; // then read() is frozen_
    std::atomic<std::uint64_t> frozen_{0};
    bool is_reset_ = false; // while paused
};

} // namespace doppel::machine
