// SPDX-License-Identifier: Apache-2.0
/// Code that works in r12 to r15 and hardly in other registers, which lend their homes.
#include <doctest/doctest.h>

#include "cpu/x86/frontend/lend_scan.hpp"
#include "cpu/x86/frontend/test_streams.hpp"

namespace doppel::cpu::x86::frontend {
namespace {

using Bytes = std::vector<std::uint8_t>;

std::uint8_t byte(std::uint64_t value) { return static_cast<std::uint8_t>(value); }

/// rax, rdx in one case of four, others but rsp and rbx in one of 32, otherwise r12 to r15: bits
/// 2..0, and bit 3 for REX.
std::uint8_t any_register(Generator& generator) {
    constexpr std::uint8_t kOthers[] = {Rcx, Rbp, Rsi, Rdi, R8, R9, R10, R11};
    if (generator.below(32) == 0)
        return kOthers[generator.below(8)];
    return generator.below(4) == 0 ? byte(generator.below(2) * 2) : byte(12 + generator.below(4));
}

Bytes with_registers(Generator& generator, std::uint64_t wide, const Bytes& opcode) {
    const std::uint8_t reg = any_register(generator);
    const std::uint8_t rm = any_register(generator);
    Bytes code{byte(0x40 | wide << 3 | (reg >> 3) << 2 | rm >> 3)};
    code.insert(code.end(), opcode.begin(), opcode.end());
    code.push_back(byte(0xc0 | (reg & 7) << 3 | (rm & 7)));
    return code;
}

/// An access through rbx, or through rbx and one of r12 to r15, which may be anything.
Bytes with_memory(Generator& generator, const Bytes& opcode) {
    const std::uint8_t reg = any_register(generator);
    const bool index = generator.below(8) == 0;
    Bytes code{byte(0x48 | (reg >> 3) << 2 | (index ? 2 : 0))};
    code.insert(code.end(), opcode.begin(), opcode.end());
    code.push_back(byte(0x40 | (reg & 7) << 3 | (index ? 4 : 3)));
    if (index)
        code.push_back(byte((4 + generator.below(4)) % 8 << 3 | 3));
    code.push_back(byte(generator.below(128)));
    return code;
}

/// ANDN, SHLX, RORX.
Bytes with_vex(Generator& generator, std::uint64_t wide) {
    const std::uint8_t reg = any_register(generator);
    const std::uint8_t rm = any_register(generator);
    const std::uint8_t third = any_register(generator);
    const std::uint64_t which = generator.below(3);
    const std::uint8_t map = which == 2 ? 3 : 2;
    const std::uint8_t pp = std::array<std::uint8_t, 3>{0, 1, 3}.at(which);
    const std::uint8_t opcode = std::array<std::uint8_t, 3>{0xf2, 0xf7, 0xf0}.at(which);
    const std::uint8_t vvvv = which == 2 ? 0 : third;
    Bytes code{0xc4, byte((~reg & 8) << 4 | 0x40 | (~rm & 8) << 2 | map),
               byte(wide << 7 | (~vvvv & 15u) << 3 | pp), opcode,
               byte(0xc0 | (reg & 7) << 3 | (rm & 7))};
    if (which == 2)
        code.push_back(byte(generator.below(64)));
    return code;
}

/// Names each register that may lend its home.
const Bytes kNameAll = {0x01, 0xf7, 0x45, 0x01, 0xc8, 0x45, 0x31,
                        0xd3, 0x89, 0xcd, 0x40, 0x88, 0xee};

Bytes instruction(Generator& generator) {
    const std::uint64_t wide = generator.below(2);
    const std::uint8_t alu = byte(generator.below(8) << 3 | generator.below(4));
    const std::uint8_t high = any_register(generator) | 12; // r12 to r15
    switch (generator.below(18)) {
    case 0: return with_memory(generator, {0x8b});
    case 1: return with_memory(generator, {0x89});
    case 2: return with_memory(generator, {alu});
    case 3: return {0x41, byte(0x50 | (high & 7))};
    case 4: return {0x41, byte(0x58 | (high & 7))};
    case 5:
        return {0x49, byte(0xc7), byte(0xc0 | (high & 7)), byte(generator.next()), 0, 0, 0}; // mov
    case 6: return with_registers(generator, wide, {0x0f, 0xb6}); // movzx
    case 7: return with_registers(generator, wide, {0x0f, byte(0x40 | generator.below(16))});
    case 8: return {0x41, 0x0f, byte(0x90 | generator.below(16)), byte(0xc0 | (high & 7))};
    case 9: return {0x49, 0x0f, byte(0xc8 | (high & 7))}; // bswap
    case 10: return {0x41, byte(0xb8 | (high & 7)), byte(generator.next()), 1, 2, 3};
    case 11: return {0x4d, 0x8d, 0x64, 0x75, byte(generator.below(256))}; // lea r12, [r13+rsi*2+…]
    case 12: // ror: by more than one, OF is anything
        return {byte(0x41 | wide << 3), 0xc1, byte(0xc8 | (high & 7)), 1};
    case 13: return {0x43, 0x0f, 0x10, 0x44, 0x2c, byte(generator.below(99))}; // movups, r12+r13
    case 14:
    case 15: return with_vex(generator, wide);
    default: return with_registers(generator, wide, {alu});
    }
}

Bytes make_code(Generator& generator) {
    Bytes code = generator.below(2) == 0 ? kNameAll : Bytes{};
    for (std::uint64_t i = 4 + generator.below(40); i > 0; --i) {
        const Bytes bytes = instruction(generator);
        if (generator.below(20) == 0) { // jcc over it or, mostly, to it
            code.push_back(byte(0x70 | generator.below(16)));
            code.push_back(byte(generator.below(4) == 0 ? bytes.size() : 0));
        }
        code.insert(code.end(), bytes.begin(), bytes.end());
    }
    code.push_back(0xf4);
    return code;
}

TEST_CASE("registers that lend their homes have their values wherever the block is left") {
    TestMachine interpreter{TestMachine::Kind::Interpreter};
    TestMachine translator{TestMachine::Kind::Translator};
    const FeatureSet features =
        features_of(*description::find_cpu_model(description::default_cpu_model()));
    Generator generator{number("DOPPEL_SEED", 8)};
    const std::uint64_t count = number("DOPPEL_CASES", 20'000);
    unsigned failures = 0;
    for (std::uint64_t i = 0; i < count && failures < 10; ++i) {
        Case test = make_case(generator, features);
        test.code = make_code(generator);
        test.gpr.at(Rbx) = kDataAt + generator.below(0x3f80);
        for (const unsigned reg : {R12, R13, R14, R15})
            test.gpr.at(reg) = generator.below(2) == 0 ? generator.below(64) : generator.next();
        const std::uint64_t at = kCodeAt + 0x1000 * (i % 64) + generator.below(3800);
        protect_data(interpreter);
        protect_data(translator);
        const VmExit x = run(interpreter, Code::Long64, test, at);
        const VmExit y = run(translator, Code::Long64, test, at);
        const std::string text =
            x.index() != y.index() ? "different exit" : difference(interpreter, translator, 0);
        if (text.empty())
            continue;
        ++failures;
        FAIL_CHECK(fmt::format("case {}: {} code {} at {:#x}", i, text, hex(test.code), at));
    }
    CHECK(failures == 0);
}

} // namespace
} // namespace doppel::cpu::x86::frontend
