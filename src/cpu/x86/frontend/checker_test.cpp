// SPDX-License-Identifier: Apache-2.0
/// Does the checking mode find what it is for? A translator that is right gives no difference; each
/// kind of wrong host code gives at least one.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "base/log.hpp"
#include "cpu/x86/frontend/test_machine.hpp"

namespace doppel::cpu::x86::frontend {
namespace {

using Bytes = std::vector<std::uint8_t>;

/// What spoil() replaces in host code: a function of TranslatorOptions has no state of its own.
Bytes g_right;
Bytes g_wrong;
unsigned g_spoilt = 0;

void spoil(std::uint8_t* begin, std::uint8_t* end) {
    for (std::uint8_t* at = begin;
         (at = std::search(at, end, g_right.begin(), g_right.end())) != end; at += g_right.size()) {
        std::ranges::copy(g_wrong, at);
        ++g_spoilt;
    }
}

const Bytes kProgram = {
    0x01, 0xd8,             // again: add eax, ebx
    0x89, 0x47, 0x08,       //        mov [rdi + 8], eax
    0x8b, 0x4f, 0x08,       //        mov ecx, [rdi + 8]
    0x66, 0x0f, 0xfe, 0xc1, //        paddd xmm0, xmm1
    0x83, 0xf9, 0x05,       //        cmp ecx, 5
    0x74, 0x02,             //        je over
    0xff, 0xc2,             //        inc edx
    0x51,                   // over:  push rcx
    0x5d,                   //        pop rbp
    0xff, 0xce,             //        dec esi
    0x75, 0xe7,             //        jne again
    0xf4,                   //        hlt
};

struct Verdict {
    std::uint64_t checked = 0;
    std::uint64_t different = 0;
    unsigned spoilt = 0;
};

/// Runs the program in the checking mode, with `right` replaced by `wrong` in its host code.
Verdict check(Bytes right, Bytes wrong) {
    g_right = std::move(right);
    g_wrong = std::move(wrong);
    g_spoilt = 0;
    InstructionMeter meter;
    TestMachine machine{TestMachine::Kind::Translator,
                        &meter,
                        {.check = true, .spoil = g_right.empty() ? nullptr : spoil}};
    machine.enter_long_mode();
    machine.write(kCodeAt, kProgram);
    CpuState& state = machine.state();
    state.gpr[Rdi] = kDataAt;
    state.gpr[Rbx] = 1;
    state.gpr[Rsi] = 8;
    state.xsave.bytes[512] = std::byte{2}; // the XMM registers are in use
    for (std::size_t i = 160; i < 416; ++i)
        state.xsave.bytes[i] = static_cast<std::byte>(i);
    machine.vcpu().state_changed();
    meter.set_limit(1000); // a spoilt loop may have no end
    if (std::getenv("DOPPEL_TRACE") == nullptr)
        base::set_log_level(base::LogLevel::Off);
    (void)machine.vcpu().run();
    base::set_log_level(base::LogLevel::Warning);
    auto& vcpu = static_cast<TranslatorVcpu&>(machine.vcpu());
    return {vcpu.blocks_checked(), vcpu.blocks_different(), g_spoilt};
}

TEST_CASE("checker: right code gives no difference") {
    const Verdict verdict = check({}, {});
    CHECK(verdict.checked >= 8);
    CHECK(verdict.different == 0);
}

TEST_CASE("checker: wrong code is found") {
    struct Case {
        const char* what;
        Bytes right, wrong;
    };
    const Case cases[] = {
        {"a register: sub instead of add", {0x01, 0xd8}, {0x29, 0xd8}},
        {"flags: compared with 6", {0x83, 0xf9, 0x05}, {0x83, 0xf9, 0x06}},
        {"an instruction is missing", {0xff, 0xc2}, {0x66, 0x90}},
        {"a vector register: psubd", {0x66, 0x0f, 0xfe, 0xc1}, {0x66, 0x0f, 0xfa, 0xc1}},
        {"memory: one byte too far", {0x89, 0x45, 0x00}, {0x89, 0x45, 0x01}},
        {"a branch the wrong way", {0x0f, 0x84}, {0x0f, 0x85}},
        {"the count: added instead of taken", {0x48, 0x83, 0xac, 0x24}, {0x48, 0x83, 0x84, 0x24}},
    };
    for (const Case& test : cases) {
        CAPTURE(test.what);
        const Verdict verdict = check(test.right, test.wrong);
        CHECK(verdict.spoilt != 0);
        CHECK(verdict.different != 0);
    }
}

} // namespace
} // namespace doppel::cpu::x86::frontend
