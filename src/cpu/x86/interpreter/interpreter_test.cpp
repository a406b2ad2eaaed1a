// SPDX-License-Identifier: Apache-2.0
/// What a comparison with the real CPU's user mode cannot show: interruptible repetition, single
/// steps, halts, changed code. Values and flags are tests/oracle's.
#include <algorithm>
#include <initializer_list>
#include <vector>

#include <doctest/doctest.h>

#include "cpu/x86/decoder/decoder.hpp"
#include "cpu/x86/interpreter/interpreter.hpp"
#include "cpu/x86/system/exceptions.hpp"
#include "cpu/x86/system/test_rig.hpp"

using namespace doppel::cpu::x86;

namespace {

struct NoVectors final : VectorUnit {
    bool execute(SystemContext& cx, const Instruction&, const std::uint8_t*,
                 std::uint64_t) noexcept override {
        return cx.ud();
    }
};

struct Fixture : test::Rig {
    NoVectors vectors;
    std::unique_ptr<Interpreter> interpreter;

    Fixture() {
        long_mode();
        interpreter = std::make_unique<Interpreter>(*cx, vectors);
    }
    void code(std::initializer_list<unsigned> bytes, std::uint64_t at = test::kCode) {
        for (const unsigned byte : bytes)
            put(at++, static_cast<std::uint8_t>(byte));
    }
    std::uint64_t& reg(Gpr number) { return state.gpr[number]; }
};

} // namespace

TEST_CASE_FIXTURE(Fixture, "a long REP STOS comes up for air with its registers where they stand") {
    code({0xf3, 0xaa}); // rep stosb
    reg(Rdi) = 0x20000;
    reg(Rcx) = 10'000;
    reg(Rax) = 0x5a;
    CHECK(interpreter->step() == StepResult::Continue);
    CHECK(state.rip == test::kCode);
    CHECK(reg(Rcx) < 10'000);
    CHECK(reg(Rcx) > 0);
    CHECK(reg(Rdi) == 0x20000 + 10'000 - reg(Rcx));
    while (state.rip == test::kCode)
        CHECK(interpreter->step() == StepResult::Continue);
    CHECK(state.rip == test::kCode + 2);
    CHECK(reg(Rcx) == 0);
    CHECK(get<std::uint8_t>(0x20000 + 9'999) == 0x5a);
    CHECK(get<std::uint8_t>(0x20000 + 10'000) == 0);
}

/// The kernel's decompressor moves itself out of its own way like this.
TEST_CASE_FIXTURE(Fixture, "REP MOVS downwards moves one element after the other") {
    constexpr std::uint64_t kEnd = 0x23456; // of both, odd within their pages
    constexpr std::uint64_t kBytes = 0x3000;
    for (const unsigned size : {1u, 2u, 4u, 8u})
        for (const std::uint64_t distance : {3u, 8u, 0x1230u}) {
            CAPTURE(size);
            CAPTURE(distance);
            const std::uint64_t low = kEnd - kBytes - distance;
            std::vector<std::uint8_t> expected(kBytes + distance);
            for (std::uint64_t i = 0; i < expected.size(); ++i)
                put(low + i, expected[i] = static_cast<std::uint8_t>(i * 7 + i / 256));
            for (std::uint64_t at = kBytes; at != 0; at -= size)
                std::copy_n(&expected[at - size], size, &expected[at - size + distance]);
            const unsigned wide = size == 8 ? 0x48 : size == 2 ? 0x66 : 0x40;
            code({0xf3, wide, size == 1 ? 0xa4u : 0xa5u});
            if (size == 2)
                code({0x66, 0xf3, 0xa5});
            state.rflags |= FLAG_DF;
            state.rip = test::kCode;
            reg(Rsi) = low + kBytes - size;
            reg(Rdi) = low + kBytes - size + distance;
            reg(Rcx) = kBytes / size;
            while (state.rip == test::kCode)
                REQUIRE(interpreter->step() == StepResult::Continue);
            CHECK(reg(Rcx) == 0);
            CHECK(reg(Rsi) == low - size);
            CHECK(reg(Rdi) == low - size + distance);
            std::uint64_t different = 0;
            for (std::uint64_t i = 0; i < expected.size(); ++i)
                different += get<std::uint8_t>(low + i) != expected[i] ? 1u : 0u;
            CHECK(different == 0);
        }
}

TEST_CASE_FIXTURE(Fixture, "a fault in the middle of REP MOVS leaves what was done") {
    code({0xf3, 0xa4});             // rep movsb
    put64(test::kPt + 0x30 * 8, 0); // page 0x30000 is not there
    state_changed(*cx);
    reg(Rsi) = 0x20000;
    reg(Rdi) = 0x2fffd;
    reg(Rcx) = 10;
    CHECK(interpreter->step() == StepResult::Continue); // #PF delivered
    CHECK(state.cr2 == 0x30000);
    CHECK(reg(Rcx) == 7);
    CHECK(reg(Rdi) == 0x30000);
    CHECK(cx->events.exceptions() == 1);
}

TEST_CASE_FIXTURE(Fixture, "with TF set one iteration of REP is one step") {
    code({0xf3, 0xaa});
    reg(Rdi) = 0x20000;
    reg(Rcx) = 5;
    state.rflags |= FLAG_TF;
    CHECK(interpreter->step() == StepResult::Continue);
    CHECK(reg(Rcx) == 4);
    CHECK(state.rip == test::kCode);
    CHECK((state.pending_debug & 0x4000) != 0);
}

TEST_CASE_FIXTURE(Fixture, "with DEBUGCTL.BTF a single step goes to the next taken branch") {
    code({0x90, 0x74, 0x02, 0xf3, 0xaa, 0xeb, 0x05}); // nop; jz +2; rep stosb; jmp +5
    reg(Rdi) = 0x20000;
    reg(Rcx) = 2;
    state.rflags = (state.rflags | FLAG_TF) & ~FLAG_ZF;
    state.debugctl = DEBUGCTL_BTF;
    for (int i = 0; i < 4; ++i) { // nop, jz not taken, two of rep stosb
        CHECK(interpreter->step() == StepResult::Continue);
        CHECK(state.pending_debug == 0);
    }
    CHECK(interpreter->step() == StepResult::Continue);
    CHECK(state.rip == test::kCode + 12);
    CHECK((state.pending_debug & 0x4000) != 0);
    CHECK(state.debugctl == DEBUGCTL_BTF);
    CHECK(service_events(*cx) == Next::Execute);
    CHECK(cx->events.exceptions(Vector::DB) == 1);
    CHECK(state.debugctl == 0); // the exception clears it
}

TEST_CASE_FIXTURE(Fixture, "changed code is executed as it is, not as it was") {
    code({0xb0, 0x01}); // mov al, 1
    CHECK(interpreter->step() == StepResult::Continue);
    CHECK((reg(Rax) & 0xff) == 1);
    code({0xb0, 0x02});
    state.rip = test::kCode;
    CHECK(interpreter->step() == StepResult::Continue);
    CHECK((reg(Rax) & 0xff) == 2);
}

TEST_CASE_FIXTURE(Fixture, "an instruction that ends with its page does not touch the next one") {
    put64(test::kPt + 0x11 * 8, 0);
    state_changed(*cx);
    code({0x90}, 0x10fff);
    state.rip = 0x10fff;
    CHECK(interpreter->step() == StepResult::Continue);
    CHECK(state.rip == 0x11000);
    CHECK(cx->events.exceptions() == 0);
    code({0xb0}, 0x10fff); // its second byte is in the missing page
    state.rip = 0x10fff;
    CHECK(interpreter->step() == StepResult::Continue);
    CHECK(cx->events.exceptions() == 1);
    CHECK(state.cr2 == 0x11000);
}

TEST_CASE_FIXTURE(Fixture, "HLT halts behind itself, and not at CPL 3") {
    code({0xf4});
    CHECK(interpreter->step() == StepResult::Halted);
    CHECK(state.rip == test::kCode + 1);
    CHECK(state.activity == Activity::Halted);
}

TEST_CASE_FIXTURE(Fixture, "LOCK CMPXCHG16B wants an aligned operand") {
    code({0xf0, 0x48, 0x0f, 0xc7, 0x0e}); // lock cmpxchg16b [rsi]
    reg(Rsi) = 0x20008;
    CHECK(interpreter->step() == StepResult::Continue);
    CHECK(cx->events.exceptions() == 1); // #GP
    CHECK(state.rip == 0x20000 + 13 * 16);
}

TEST_CASE_FIXTURE(Fixture, "a decoded instruction is executed without looking at memory") {
    Instruction in{};
    const std::uint8_t bytes[] = {0x48, 0xff, 0xc0}; // inc rax
    REQUIRE(decode(bytes, CodeSize::Bits64, in) == DecodeStatus::Ok);
    CHECK(interpreter->execute(in, bytes) == StepResult::Continue);
    CHECK(reg(Rax) == 1);
    CHECK(state.rip == test::kCode + 3);
}
