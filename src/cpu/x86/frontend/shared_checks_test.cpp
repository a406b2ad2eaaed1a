// SPDX-License-Identifier: Apache-2.0
/// Checks that blocks share, and what becomes of code that calls them often.
#include <doctest/doctest.h>

#include <array>

#include "cpu/x86/frontend/stubs.hpp"
#include "cpu/x86/frontend/test_machine.hpp"

namespace doppel::cpu::x86::frontend {
namespace {

constexpr std::uint32_t kTurns = 300;

/// mov ecx, kTurns; 1: add rax, [rbx]; dec ecx; jnz 1b; hlt
std::array<std::uint8_t, 13> summing() {
    std::array<std::uint8_t, 13> code{0xb9, 0,    0,    0,    0,    0x48, 0x03,
                                      0x03, 0xff, 0xc9, 0x75, 0xf9, 0xf4};
    code[1] = kTurns & 0xff;
    code[2] = kTurns >> 8;
    return code;
}

VcpuStats sum_up(std::uint32_t busy_calls, bool shared = true) {
    TranslatorOptions options;
    options.tuning.loops = false; // they have no checks
    options.tuning.busy_calls = busy_calls;
    options.tuning.shared_checks = shared;
    TestMachine machine{TestMachine::Kind::Translator, nullptr, options};
    for (int i = 0; i < 2; ++i) {
        machine.enter_long_mode();
        machine.write(kCodeAt, summing());
        machine.write(kDataAt, std::array<std::uint8_t, 8>{3});
        machine.state().gpr[Rbx] = kDataAt;
        machine.vcpu().state_changed();
        CHECK(std::holds_alternative<HaltExit>(machine.run_bounded()));
        CHECK(machine.state().gpr[Rax] == 3 * kTurns);
    }
    return machine.vcpu().stats();
}

std::uint64_t exits(const VcpuStats& stats, std::string_view name) {
    for (const auto& exit : stats.exits)
        if (exit.name == name)
            return exit.count;
    FAIL("no such exit");
    return 0;
}

TEST_CASE("shared checks: a page whose checks are called often is made anew, with its own") {
    const VcpuStats seldom = sum_up(1'000'000), often = sum_up(100);
    CHECK(exits(seldom, "miss in compact code") == 2); // the first of each run
    CHECK(exits(seldom, "poll") == 0);
    CHECK(often.translations > seldom.translations);
    // What it has called for is there from then on: not once for each hundred of its calls.
    const std::uint64_t told = exits(often, "poll") + exits(often, "host fault");
    CHECK(told == 1);
}

/// What lahf sees behind `branch`, ecx being where it leads, and [ebx], in 32-bit code of users.
std::uint64_t flags_behind(std::initializer_list<std::uint8_t> branch) {
    TestMachine machine{TestMachine::Kind::Translator};
    machine.enter(Code::Compatibility32, 3);
    std::vector<std::uint8_t> code{0x39, 0xd0}; // cmp eax, edx
    code.insert(code.end(), branch);
    machine.write(kCodeAt, code);
    machine.write(kCodeAt + 0x2000, std::array<std::uint8_t, 2>{0x9f, 0xf4}); // lahf; hlt: #GP
    machine.write(kDataAt, std::array<std::uint8_t, 4>{0x00, 0x20, 0x20, 0x00});
    machine.state().gpr[Rax] = 1;
    machine.state().gpr[Rdx] = 2;
    machine.state().gpr[Rcx] = kCodeAt + 0x2000;
    machine.state().gpr[Rbx] = kDataAt;
    machine.vcpu().state_changed();
    CHECK(std::holds_alternative<ShutdownExit>(machine.run_bounded()));
    return machine.state().gpr[Rax] >> 8 & 0xff;
}

TEST_CASE("shared checks: one behind the last flags leaves them to a call") {
    constexpr std::uint64_t kBorrow = FLAG_CF | FLAG_SF | FLAG_AF | FLAG_PF | 2; // 1 - 2
    CHECK(flags_behind({0xff, 0xd1}) == kBorrow);                                // call ecx
    CHECK(flags_behind({0xff, 0x13}) == kBorrow);                                // call [ebx]
    CHECK(flags_behind({0xff, 0xe1}) == kBorrow);                                // jmp ecx
    CHECK(flags_behind({0xff, 0x23}) == kBorrow);                                // jmp [ebx]
    CHECK(flags_behind({0xe8, 0xf9, 0x1f, 0x00, 0x00}) == kBorrow);              // call
    CHECK(flags_behind({0x51, 0xc3}) == kBorrow);                                // push ecx; ret
}

TEST_CASE("shared checks: they can be left out") {
    CHECK(exits(sum_up(100, false), "miss in compact code") == 0);
}

TEST_CASE("shared checks: there is one for each size that accesses have") {
    std::array<std::uint8_t, 65536> memory{};
    translator::Assembler assembler{memory.data(), memory.data(), memory.size()};
    const SharedChecks shared = emit_stubs(assembler).shared;
    for (const std::uint32_t bytes : {1u, 2u, 4u, 8u, 16u, 32u}) {
        CHECK(shared.contains(shared.check(true, CheckGives::Addend, bytes)));
        CHECK(shared.check(false, CheckGives::Addend, bytes) !=
              shared.check(true, CheckGives::Addend, bytes));
    }
    CHECK(shared.check(false, CheckGives::PageHost, 10) == nullptr);
    CHECK(shared.stack_check(300) == nullptr);
    CHECK_FALSE(shared.contains(assembler.here()));
}

} // namespace
} // namespace doppel::cpu::x86::frontend
