// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What a vCPU was interrupted by: counters since its creation, and the last events in order, for
/// --stats and for the report of a crash. Written where events are delivered, which is never a fast
/// path. Not guest state: neither saved nor reset.
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "cpu/x86/cpu_state.hpp"

namespace doppel::cpu::x86 {

/// One event that was delivered, or whose delivery failed.
struct TakenEvent {
    enum class Kind : std::uint8_t {
        Exception,
        Interrupt, // maskable, through the interrupt controller
        Nmi,
        Software, // INT n, INT3, INTO, INT1
        Init,
        StartUp, // SIPI
    };
    Kind kind = Kind::Exception;
    std::uint8_t vector = 0;
    bool has_error_code = false;
    std::uint32_t error_code = 0;
    std::uint64_t rip = 0; // of the instruction it struck; before it for interrupts and traps
    std::uint64_t cr2 = 0; // page faults
};

/// vCPU thread only, or while the vCPU does not run.
class EventLog {
public:
    static constexpr std::size_t kKept = 16; // a power of two

    [[gnu::always_inline]] void add(const TakenEvent& event) {
        TakenEvent& slot = kept_.data()[count_++ % kKept];
        slot.kind = event.kind;
        slot.vector = event.vector;
        slot.has_error_code = event.has_error_code;
        slot.error_code = event.error_code;
        slot.rip = event.rip;
        slot.cr2 = event.cr2;
        if (event.kind == TakenEvent::Kind::Exception)
            ++by_vector_.data()[event.vector % kVectors];
        else
            ++by_kind_.data()[static_cast<std::size_t>(event.kind)];
    }

    std::uint64_t exceptions() const {
        std::uint64_t sum = 0;
        for (const auto count : by_vector_)
            sum += count;
        return sum;
    }
    std::uint64_t exceptions(Vector vector) const {
        return by_vector_.data()[static_cast<std::size_t>(vector)];
    }
    /// Of any kind but Exception.
    std::uint64_t count(TakenEvent::Kind kind) const {
        return by_kind_.data()[static_cast<std::size_t>(kind)];
    }

    /// Events in the log: at most kKept.
    std::size_t size() const { return count_ < kKept ? count_ : kKept; }
    /// `index` 0 is the oldest of size().
    const TakenEvent& operator[](std::size_t index) const {
        return kept_.data()[(count_ - size() + index) % kKept];
    }

private:
    static constexpr std::size_t kVectors = 32;
    std::array<TakenEvent, kKept> kept_{};
    std::uint64_t count_ = 0;
    std::array<std::uint64_t, kVectors> by_vector_{};
    std::array<std::uint64_t, 6> by_kind_{};
};

/// "#PF" and the like; empty for a vector that no exception of the manuals has.
std::string exception_name(std::uint8_t vector);
/// For people, one line: `#PF error 0002 at rip 1000, address 8`.
std::string describe(const TakenEvent& event);

} // namespace doppel::cpu::x86
