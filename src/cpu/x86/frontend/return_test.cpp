// SPDX-License-Identifier: Apache-2.0
/// Returns, which find the landing of the last call whose return address was where theirs is: that
/// may be another call's, or one whose page means something else by now.
#include <array>
#include <cstring>
#include <initializer_list>
#include <vector>

#include <doctest/doctest.h>

#include "cpu/x86/frontend/test_machine.hpp"

using namespace doppel;
using namespace doppel::cpu::x86;
using namespace doppel::cpu::x86::frontend;

namespace {

constexpr std::uint32_t kCalls = 1000;
constexpr std::uint64_t kKernelAt = kCodeAt + 0x8000;
constexpr std::uint64_t kCallee = kCodeAt + 0x1010, kOther = kCodeAt + 0x3000;
constexpr std::uint64_t kJumper = kCodeAt + 0x4000;
constexpr std::uint64_t kReturnsTo = kCodeAt + 10;
constexpr std::uint64_t kNotCanonical = 0x8000'0000'0000'0000;

void append(std::vector<std::uint8_t>& code, std::initializer_list<std::uint8_t> bytes) {
    code.insert(code.end(), bytes);
}
void append32(std::vector<std::uint8_t>& code, std::uint64_t value) {
    for (unsigned i = 0; i < 4; ++i)
        code.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
}

/// User code; what it computes is in ebx.
class Program {
public:
    explicit Program(TestMachine::Kind kind,
                     const TranslatorOptions& options = environment_options())
        : machine{kind, nullptr, options} {
        machine.enter_long_mode(3);
        CpuState& state = machine.state();
        segments_ = {state.segment[Cs], state.segment[Ss]};
        state.star = std::uint64_t{0x8} << 32;
        state.lstar = kKernelAt;
        machine.vcpu().state_changed();
        machine.write(kKernelAt,
                      std::array<std::uint8_t, 4>{0x0f, 0x01, 0x38, 0xf4}); // invlpg [rax], hlt
        machine.write(kCallee, std::array<std::uint8_t, 1>{0xc3});
        put_caller(kCodeAt, 1);
    }
    /// mov ecx, kCalls; 1: call callee; add ebx, amount; dec ecx; jnz 1b; syscall
    void put_caller(std::uint64_t gpa, std::uint8_t amount) {
        std::vector<std::uint8_t> code{0xb9};
        append32(code, kCalls);
        append(code, {0xe8});
        append32(code, kCallee - kReturnsTo);
        append(code, {0x83, 0xc3, amount, 0xff, 0xc9, 0x75, 0xf4, 0x0f, 0x05});
        machine.write(gpa, code);
    }
    /// push target; jmp callee; add ebx, 7; syscall
    void put_jumper(std::uint64_t gpa, std::uint64_t at, std::uint32_t target) {
        std::vector<std::uint8_t> code{0x68};
        append32(code, target);
        append(code, {0xe9});
        append32(code, kCallee - (at + 10));
        append(code, {0x83, 0xc3, 0x07, 0x0f, 0x05});
        machine.write(gpa, code);
    }
    std::uint32_t computed(std::uint64_t at) {
        CHECK(std::holds_alternative<cpu::HaltExit>(run(at)));
        return static_cast<std::uint32_t>(machine.state().gpr[Rbx]);
    }
    cpu::VmExit run(std::uint64_t at) {
        CpuState& state = machine.state();
        state.gpr[Rbx] = 0;
        state.gpr[Rsp] = stack;
        state.cpl = 3;
        state.segment[Cs] = segments_[0];
        state.segment[Ss] = segments_[1];
        return go_on(at);
    }
    /// The page of `linear` is the one at `gpa` from now on.
    void map(std::uint64_t linear, std::uint64_t gpa) {
        (void)machine.memory().store(memory::Gpa{kTablesAt + 0x3000 + (linear >> 12) * 8},
                                     (gpa & ~std::uint64_t{0xfff}) | 7);
        machine.state().gpr[Rax] = linear;
        REQUIRE(std::holds_alternative<cpu::HaltExit>(go_on(kKernelAt)));
    }
    TestMachine machine;
    std::uint64_t stack = kDataAt + 0x1000;

private:
    cpu::VmExit go_on(std::uint64_t at) {
        machine.state().rip = at;
        machine.state().activity = Activity::Running;
        return machine.run_bounded();
    }
    std::array<Segment, 2> segments_;
};

template <typename Check> void on_both(const Check& check) {
    for (const auto kind : {TestMachine::Kind::Interpreter, TestMachine::Kind::Translator}) {
        Program program{kind};
        CHECK(program.computed(kCodeAt) == kCalls);
        check(program);
    }
}

} // namespace

TEST_CASE("a return goes to what is behind the call now") {
    on_both([](Program& program) {
        program.put_caller(kCodeAt, 2);
        CHECK(program.computed(kCodeAt) == 2 * kCalls);
        program.put_caller(kOther, 3);
        program.map(kCodeAt, kOther);
        CHECK(program.computed(kCodeAt) == 3 * kCalls);
        program.map(kCodeAt, kCodeAt);
        CHECK(program.computed(kCodeAt) == 2 * kCalls);
    });
}

TEST_CASE("a return without a call finds the landing of another page, and does not take it") {
    on_both([](Program& program) {
        program.put_jumper(kOther, kCodeAt, kReturnsTo);
        program.map(kCodeAt, kOther);
        CHECK(program.computed(kCodeAt) == 7);
        program.map(kCodeAt, kCodeAt);
        CHECK(program.computed(kCodeAt) == kCalls);
        CHECK(program.computed(kCodeAt) == kCalls);
    });
}

TEST_CASE("a return to address 0 does not find a landing that knows nothing") {
    on_both([](Program& program) {
        program.map(kCodeAt, kCodeAt); // forgotten
        program.put_jumper(kJumper, kJumper, 0);
        program.machine.write(0, std::array<std::uint8_t, 5>{0x83, 0xc3, 0x09, 0x0f, 0x05});
        CHECK(program.computed(kJumper) == 9);
    });
}

TEST_CASE("a landing that has been evicted is not returned to") {
    auto options = environment_options();
    options.code_bytes = 1 << 20;
    Program program{TestMachine::Kind::Translator, options};
    program.put_jumper(kJumper, kJumper, kReturnsTo - 10);
    // Loads, which take much room: mov eax, [rsp]; at last syscall.
    constexpr std::uint64_t kLongAt = 0x300000;
    std::vector<std::uint8_t> code;
    while (code.size() < 0x20000)
        append(code, {0x8b, 0x04, 0x24});
    append(code, {0x0f, 0x05});
    program.machine.write(kLongAt, code);
    for (unsigned round = 0; round < 3; ++round) {
        CHECK(program.computed(kCodeAt) == kCalls);
        CHECK(program.computed(kLongAt) == 0);
        CHECK(program.computed(kJumper) == kCalls);
    }
    CHECK(program.machine.vcpu().stats().code_cache_evictions > 8);
}

TEST_CASE("a callee that changes its return address, and a stack that is not aligned") {
    on_both([](Program& program) {
        // add qword [rsp], 3: past the sum; ret
        program.machine.write(kCallee,
                              std::array<std::uint8_t, 6>{0x48, 0x83, 0x04, 0x24, 0x03, 0xc3});
        CHECK(program.computed(kCodeAt) == 0);
        program.machine.write(kCallee, std::array<std::uint8_t, 1>{0xc3});
        program.stack += 3;
        CHECK(program.computed(kCodeAt) == kCalls);
        program.stack += 2;
        CHECK(program.computed(kCodeAt) == kCalls);
    });
}

TEST_CASE("a return to an address that is not canonical faults where it stands") {
    on_both([](Program& program) {
        // mov rax, address; push rax; jmp callee
        std::vector<std::uint8_t> code{0x48, 0xb8};
        append32(code, 0);
        append32(code, kNotCanonical >> 32);
        append(code, {0x50, 0xe9});
        append32(code, kCallee - (kJumper + 16));
        program.machine.write(kJumper, code);
        CHECK(std::holds_alternative<cpu::ShutdownExit>(program.run(kJumper)));
        CHECK(program.machine.state().rip == kCallee);
        CHECK(program.machine.state().gpr[Rsp] == program.stack - 8);
    });
}
