// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <string>
#include <string_view>
#include <thread>

#include "vmm/turns.hpp"

using namespace doppel;
using vmm::Turns;

namespace {

/// The host's side of a console: types, and keeps what the guest writes.
struct FakeHost final : chardev::Backend {
    void write(std::span<const std::byte>) noexcept override {}
    void set_receiver(chardev::ByteReceiver* to) noexcept override { receiver = to; }
    void receiver_ready() noexcept override { ++ready_calls; }
    void type(std::string_view text) { receiver->receive(std::as_bytes(std::span{text})); }

    chardev::ByteReceiver* receiver = nullptr;
    int ready_calls = 0;
};

/// The guest's serial port.
struct FakeDevice final : chardev::ByteReceiver {
    std::size_t can_receive() const noexcept override { return room; }
    void receive(std::span<const std::byte> bytes) noexcept override {
        for (const auto byte : bytes)
            text.push_back(static_cast<char>(byte));
        room -= bytes.size();
    }

    std::size_t room = 16;
    std::string text;
};

struct Rig {
    FakeHost host;
    FakeDevice device;
    vmm::VirtualInputs inputs{host};
    Turns turns{inputs, 2};
    cpu::InstructionMeter& meter = *inputs.meter();

    Rig() { inputs.console().set_receiver(&device); }
    ~Rig() { inputs.console().set_receiver(nullptr); }
    /// `vcpu` runs until its limit, with the turn.
    void run_to_limit(unsigned vcpu) {
        REQUIRE(turns.take(vcpu));
        meter.count(meter.left());
        turns.done(vcpu, cpu::LimitExit{});
    }
};

} // namespace

TEST_CASE_FIXTURE(Rig, "turns: each vCPU gets a slice, in order") {
    run_to_limit(0);
    CHECK(meter.executed() == Turns::kSlice);
    run_to_limit(1);
    CHECK(meter.executed() == 2 * Turns::kSlice);
    run_to_limit(0);
    CHECK(meter.executed() == 3 * Turns::kSlice);
}

TEST_CASE_FIXTURE(Rig, "turns: a timer in the middle of a slice does not end it") {
    int fired = 0;
    auto timer = inputs.time().create_timer([&] { ++fired; });
    timer->arm(100);
    run_to_limit(0);
    CHECK(meter.executed() == 100);
    CHECK(fired == 1);
    run_to_limit(0);
    CHECK(meter.executed() == Turns::kSlice);
}

TEST_CASE_FIXTURE(Rig, "turns: who halts is passed over until it is woken") {
    run_to_limit(0);
    REQUIRE(turns.take(1));
    turns.done(1, cpu::HaltExit{});
    bool again = true;
    std::thread second{[&] { again = turns.take(1); }}; // passes the turn on and waits
    run_to_limit(0);
    run_to_limit(0);
    CHECK(meter.executed() == 3 * Turns::kSlice);
    turns.interrupt(1);
    second.join();
    CHECK(!again);
    turns.wake(1);
    run_to_limit(0);
    run_to_limit(1);
    CHECK(meter.executed() == 5 * Turns::kSlice);
}

TEST_CASE_FIXTURE(Rig, "turns: an event that came before the halt keeps the vCPU awake") {
    REQUIRE(turns.take(0));
    turns.wake(0);
    turns.done(0, cpu::HaltExit{});
    REQUIRE(turns.take(0)); // at once, at the same time
    CHECK(meter.executed() == 0);
}

TEST_CASE("turns: while all halt, time jumps to the next deadline") {
    FakeHost host;
    vmm::VirtualInputs inputs{host};
    Turns turns{inputs, 1};
    auto timer = inputs.time().create_timer([&] { turns.wake(0); });
    timer->arm(7'000'000);
    REQUIRE(turns.take(0));
    turns.done(0, cpu::HaltExit{});
    REQUIRE(turns.take(0));
    CHECK(inputs.time().now_ns() == 7'000'000);
    CHECK(inputs.meter()->executed() == 0);
}

TEST_CASE_FIXTURE(Rig, "held console: what is typed enters at the end of a slice, as it fits") {
    host.type("twenty characters now");
    CHECK(device.text.empty());
    run_to_limit(0);
    CHECK(device.text == "twenty character");
    device.room = 16;
    run_to_limit(1);
    CHECK(device.text == "twenty characters now");
}

TEST_CASE_FIXTURE(Rig, "held console: the host hears when there is room again") {
    const std::string much(host.receiver->can_receive(), 'x');
    host.type(much);
    CHECK(host.receiver->can_receive() == 0);
    run_to_limit(0);
    CHECK(host.ready_calls == 1);
    CHECK(host.receiver->can_receive() == 16);
}
