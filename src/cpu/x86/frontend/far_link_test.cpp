// SPDX-License-Identifier: Apache-2.0
/// Calls to other pages, which remember their target: until it, its page or the caller's address is
/// another one. Those of the kernel remember where its address is entered.
#include <array>
#include <cstring>

#include <doctest/doctest.h>

#include "cpu/x86/frontend/test_machine.hpp"

using namespace doppel;
using namespace doppel::cpu::x86;
using namespace doppel::cpu::x86::frontend;

namespace {

constexpr std::uint32_t kCalls = 200;
constexpr std::uint64_t kKernelAt = kCodeAt + 0x8000;
constexpr std::uint64_t kCallee = kCodeAt + 0x1010, kOther = kCodeAt + 0x3010;

class Caller {
public:
    Caller(TestMachine::Kind kind, unsigned cpl) : machine{kind}, cpl_{cpl} {
        machine.enter_long_mode(cpl);
        CpuState& state = machine.state();
        segments_ = {state.segment[Cs], state.segment[Ss]};
        state.star = std::uint64_t{0x8} << 32;
        state.lstar = kKernelAt;
        machine.vcpu().state_changed();
        machine.write(kKernelAt,
                      std::array<std::uint8_t, 4>{0x0f, 0x01, 0x3b, 0xf4}); // invlpg, hlt
    }
    /// mov ecx, kCalls; 1: call callee; dec ecx; jnz 1b; syscall or, in the kernel, hlt
    void put_caller(std::uint64_t at, std::uint64_t callee) {
        std::array<std::uint8_t, 16> code{0xb9, 0, 0,    0,    0,    0xe8, 0,    0,
                                          0,    0, 0xff, 0xc9, 0x75, 0xf7, 0x0f, 0x05};
        const auto distance = static_cast<std::uint32_t>(callee - (at + 10));
        if (cpl_ == 0)
            code[14] = 0xf4;
        std::memcpy(&code[1], &kCalls, 4);
        std::memcpy(&code[6], &distance, 4);
        machine.write(at, code);
    }
    /// add eax, amount; ret
    void put_callee(std::uint64_t at, std::uint32_t amount) {
        std::array<std::uint8_t, 6> code{0x05, 0, 0, 0, 0, 0xc3};
        std::memcpy(&code[1], &amount, 4);
        machine.write(at, code);
    }
    /// What each call has added, if it was the same.
    std::uint32_t added(std::uint64_t at) {
        CpuState& state = machine.state();
        state.gpr[Rax] = 0;
        state.gpr[Rbx] = 0x7000;
        state.gpr[Rsp] = kDataAt + 0x1000;
        state.cpl = static_cast<std::uint8_t>(cpl_);
        state.segment[Cs] = segments_[0];
        state.segment[Ss] = segments_[1];
        run(at);
        return static_cast<std::uint32_t>(state.gpr[Rax]) / kCalls +
               (state.gpr[Rax] % kCalls == 0 ? 0 : 0x10000);
    }
    /// The page of `linear` is the one at `gpa` from now on.
    void map(std::uint64_t linear, std::uint64_t gpa) {
        (void)machine.memory().store(memory::Gpa{kTablesAt + 0x3000 + (linear >> 12) * 8},
                                     (gpa & ~std::uint64_t{0xfff}) | 7);
        machine.state().gpr[Rbx] = linear;
        run(kKernelAt); // the last run ended in the kernel
    }
    TestMachine machine;

private:
    void run(std::uint64_t at) {
        machine.state().rip = at;
        machine.state().activity = Activity::Running;
        REQUIRE(std::holds_alternative<cpu::HaltExit>(machine.vcpu().run()));
    }
    unsigned cpl_;
    std::array<Segment, 2> segments_;
};

void check(TestMachine::Kind kind, unsigned cpl) {
    Caller caller{kind, cpl};
    caller.put_caller(kCodeAt, kCallee);
    caller.put_callee(kCallee, 1);
    caller.put_callee(kOther, 2);
    CHECK(caller.added(kCodeAt) == 1);
    caller.put_callee(kCallee, 3);
    CHECK(caller.added(kCodeAt) == 3);
    caller.map(kCallee, kOther);
    CHECK(caller.added(kCodeAt) == 2);
    caller.map(kCallee, kCallee);
    CHECK(caller.added(kCodeAt) == 3);
    // The same caller elsewhere.
    constexpr std::uint64_t kAway = 0x10000;
    caller.map(kCodeAt + kAway, kCodeAt);
    caller.map(kCallee + kAway, kOther);
    for (unsigned round = 0; round < 3; ++round) {
        CHECK(caller.added(kCodeAt + kAway) == 2);
        CHECK(caller.added(kCodeAt) == 3);
    }
}

/// These RIPs look like that of an entry that nobody has made: where nothing but this address can
/// be, too, when the code is where it was not before.
void check_call_of_empty(TestMachine::Kind kind, unsigned cpl, std::uint64_t callee) {
    constexpr std::uint64_t kAway = 0x10000;
    Caller caller{kind, cpl};
    caller.put_caller(kAway + 0x1100, kAway + callee);
    caller.put_callee(kAway + callee, 4);
    caller.put_callee(callee, 5);
    CHECK(caller.added(kAway + 0x1100) == 4);
    caller.map(kAway + callee, kAway + callee); // forgotten
    caller.map(0x1100, kAway + 0x1100);
    CHECK(caller.added(0x1100) == 5);
    CHECK(caller.added(0x1100) == 5);
}

} // namespace

TEST_CASE("a call to another page goes where it leads now") {
    for (const unsigned cpl : {3u, 0u}) {
        check(TestMachine::Kind::Interpreter, cpl);
        check(TestMachine::Kind::Translator, cpl);
    }
}

TEST_CASE("a call of address 0 and of address 2") {
    for (const unsigned cpl : {3u, 0u}) {
        for (const std::uint64_t callee : {0u, 2u}) {
            check_call_of_empty(TestMachine::Kind::Interpreter, cpl, callee);
            check_call_of_empty(TestMachine::Kind::Translator, cpl, callee);
        }
    }
}
