// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Fakes that the tests of devices share: a wire that remembers, a sink that collects, a calendar
/// that stands still. Test code only; owner thread only.
#include <cstdint>
#include <map>
#include <string>

#include "base/clock.hpp"
#include "bus/interrupt.hpp"
#include "chardev/backend.hpp"
#include "cpu/interrupt_port.hpp"
#include "devices/apic/apic_timer.hpp"
#include "devices/pvclock/pvclock.hpp"

namespace doppel::devices::test {

/// Remembers the level of each input and how often it rose.
struct FakeIrqSink final : bus::IrqSink {
    struct Input {
        bool level = false;
        int rises = 0;
    };
    std::map<std::uint32_t, Input> inputs;
    void set_irq_level(std::uint32_t input, bool level) noexcept override {
        auto& wire = inputs[input];
        wire.rises += level && !wire.level;
        wire.level = level;
    }
    bool level(std::uint32_t input = 0) { return inputs[input].level; }
    int rises(std::uint32_t input = 0) { return inputs[input].rises; }
    bus::IrqLine line(std::uint32_t input = 0) { return {*this, input}; }
};

struct CollectingSink final : chardev::ByteSink {
    std::string text;
    void write(std::span<const std::byte> bytes) noexcept override {
        for (const auto byte : bytes)
            text.push_back(static_cast<char>(byte));
    }
};

struct FakeSource final : chardev::ByteSource {
    int ready_calls = 0;
    chardev::ByteReceiver* receiver = nullptr;
    void set_receiver(chardev::ByteReceiver* r) noexcept override { receiver = r; }
    void receiver_ready() noexcept override { ++ready_calls; }
};

/// 2024-02-29 23:59:58 UTC, a Thursday, unless the test moves it.
struct FixedWallClock final : base::WallClock {
    Time time{1'709'251'198, 0};
    Time now() const noexcept override { return time; }
};

/// A time-stamp counter of 2 GHz.
struct FakeTsc final : TscPort {
    const base::Clock& clock;
    explicit FakeTsc(const base::Clock& c) : clock{c} {}
    std::uint64_t now() const noexcept override { return clock.now_ns() * 2; }
    std::uint64_t ns_at(std::uint64_t tsc) const noexcept override { return tsc / 2 + tsc % 2; }
};

/// The same for every vCPU, and whatever a guest made of it.
struct FakeGuestTsc final : GuestTsc {
    const base::Clock& clock;
    std::uint64_t hz = 2'000'000'000;
    std::uint64_t lead_ticks = 0;
    std::map<unsigned, std::uint64_t> offsets;
    explicit FakeGuestTsc(const base::Clock& c) : clock{c} {}
    std::uint64_t read(unsigned vcpu) const noexcept override {
        const auto offset = offsets.find(vcpu);
        return Frequency{hz}.ticks_at(clock.now_ns()) + lead_ticks +
               (offset == offsets.end() ? 0 : offset->second);
    }
    std::uint64_t frequency_hz() const noexcept override { return hz; }
    bool is_synchronized() const noexcept override { return offsets.empty(); }
};

struct FakeWakeup final : cpu::Wakeup {
    int calls = 0;
    void notify() noexcept override { ++calls; }
};

} // namespace doppel::devices::test
