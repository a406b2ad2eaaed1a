// SPDX-License-Identifier: Apache-2.0
/// Flags that are computed again where a fault shows them.
#include <doctest/doctest.h>

#include <bit>

#include "cpu/x86/frontend/test_streams.hpp"

namespace doppel::cpu::x86::frontend {
namespace {

/// An instruction that makes all flags, of registers but rsp, or with an operand at rbx.
void put_flag_maker(Generator& generator, std::vector<std::uint8_t>& code) {
    constexpr std::uint8_t kOps[] = {0x00, 0x08, 0x20, 0x28, 0x30, 0x38, 0x84, 0xf6, 0xc0, 0x80};
    const std::uint8_t op = kOps[generator.below(std::size(kOps))];
    const auto size = generator.below(4);
    if (size == 1)
        code.push_back(0x66);
    const auto rex = static_cast<std::uint8_t>(generator.below(8) & 5); // R, B
    code.push_back(static_cast<std::uint8_t>(0x40 | (size == 3 ? 8 : 0) | rex));
    const std::uint8_t wide = size == 0 ? 0 : 1;
    const bool direct = op < 0x40;
    code.push_back(static_cast<std::uint8_t>(op | wide | (direct ? generator.below(2) << 1 : 0)));
    const bool memory = generator.below(3) == 0 && (rex & 1) == 0 && op != 0xc0;
    auto reg = static_cast<std::uint8_t>(generator.below(8));
    if (op == 0xf6)
        reg = 3; // neg
    else if (op == 0xc0)
        reg = static_cast<std::uint8_t>(4 + generator.below(2)); // shl, shr
    else if (reg == Rsp && (rex & 4) == 0 && op != 0x80)
        reg = Rax;
    auto rm = memory ? std::uint8_t{Rbx} : static_cast<std::uint8_t>(generator.below(8));
    if (!memory && (rm == Rsp || rm == Rbx) && (rex & 1) == 0)
        rm = Rdi;
    code.push_back(static_cast<std::uint8_t>((memory ? 0x40 : 0xc0) | (reg & 7) << 3 | rm));
    if (memory)
        code.push_back(static_cast<std::uint8_t>(generator.below(64)));
    if (op == 0xc0)
        code.push_back(static_cast<std::uint8_t>(1 + generator.below(7)));
    else if (op == 0x80)
        for (std::uint64_t i = 0; i < (size == 0 ? 1 : size == 1 ? 2 : 4); ++i)
            code.push_back(static_cast<std::uint8_t>(generator.below(128)));
}

/// Flags; what they were made from changes; an access that may fault and show them; other flags.
std::vector<std::uint8_t> make_flag_code(Generator& generator) {
    using Bytes = std::vector<std::uint8_t>;
    Bytes code;
    const auto put = [&code](const Bytes& bytes) {
        code.insert(code.end(), bytes.begin(), bytes.end());
    };
    for (std::uint64_t i = 2 + generator.below(3); i > 0; --i) {
        put_flag_maker(generator, code);
        for (std::uint64_t changes = generator.below(3); changes > 0; --changes) {
            auto reg = static_cast<std::uint8_t>(generator.below(8));
            const auto high = static_cast<std::uint8_t>(generator.below(2));
            if (high == 0 && (reg == Rbx || reg == Rsp || reg == Rsi))
                reg = Rdx;
            const auto field = static_cast<std::uint8_t>(reg << 3);
            const auto rex = static_cast<std::uint8_t>(0x48 | high << 2);
            switch (generator.below(5)) {
            case 0: put({rex, 0x8b, static_cast<std::uint8_t>(0xc0 | field | Rcx)}); break;
            case 1: put({rex, 0x8d, static_cast<std::uint8_t>(0x40 | field | Rdi), 8}); break;
            case 2: put({rex, 0x8b, static_cast<std::uint8_t>(0x40 | field | Rsi), 0x10}); break;
            case 3:
                put({static_cast<std::uint8_t>(0x40 | high),
                     static_cast<std::uint8_t>(0x58 | reg)}); // pop
                break;
            default: put({0x74, 0x00}); break; // je to the next
            }
        }
        if (generator.below(2) == 0)
            put({0x48, 0x8b, 0x43, static_cast<std::uint8_t>(generator.below(128))});
    }
    code.push_back(0xf4);
    return code;
}

TEST_CASE("a fault shows the flags, whatever has become of what made them") {
    TestMachine interpreter{TestMachine::Kind::Interpreter};
    TestMachine translator{TestMachine::Kind::Translator};
    const FeatureSet features =
        features_of(*description::find_cpu_model(description::default_cpu_model()));
    Generator generator{number("DOPPEL_SEED", 7)};
    const std::uint64_t count = number("DOPPEL_CASES", 20'000);
    unsigned failures = 0;
    for (std::uint64_t i = 0; i < count && failures < 10; ++i) {
        Case test = make_case(generator, features);
        test.code = make_flag_code(generator);
        for (const unsigned reg : {Rbx, Rsi})
            test.gpr.at(reg) = kDataAt + 0x1000 * generator.below(4) +
                               (generator.below(2) == 0 ? 0xf80 + generator.below(128)
                                                        : 0x100 + generator.below(0xd00));
        const std::uint64_t at = kCodeAt + 0x1000 * (i % 64) + generator.below(4000);
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

/// Of CMP (Intel SDM Vol. 1 §3.4.3.1).
std::uint64_t flags_of_compare(std::uint64_t left, std::uint64_t right) {
    const std::uint64_t result = left - right;
    const auto flag = [](bool set, unsigned bit) { return std::uint64_t{set} << bit; };
    return flag(left < right, 0) | flag(std::popcount(result & 0xff) % 2 == 0, 2) |
           ((left ^ right ^ result) & 0x10) | flag(result == 0, 6) | flag(result >> 63 != 0, 7) |
           flag(((left ^ right) & (left ^ result)) >> 63 != 0, 11);
}

TEST_CASE("a loop that does not want its flags is left at a kick with them") {
    TestMachine machine{TestMachine::Kind::Translator};
    machine.enter_long_mode();
    machine.write(kCodeAt, std::vector<std::uint8_t>{
                               0x48, 0x89, 0xca,       // mov rdx, rcx
                               0x48, 0x83, 0xc1, 0x01, // add rcx, 1
                               0x48, 0x39, 0xe9,       // cmp rcx, rbp
                               0x75, 0xf4,             // jne
                           });
    machine.state().gpr[Rbp] = 0x7fff'ffff'ffff'fff3;
    machine.vcpu().state_changed();
    unsigned ran = 0; // a kick may come before the run that it ends
    for (unsigned i = 0; i < 500 && ran < 20; ++i) {
        const std::uint64_t before = machine.state().gpr[Rcx];
        CHECK(std::holds_alternative<KickExit>(machine.run_until_kicked()));
        const CpuState& state = machine.state();
        const std::uint64_t turns = state.gpr[Rcx];
        ran += turns > before ? 1 : 0;
        CHECK(state.rip == kCodeAt);
        if (turns != 0) {
            CHECK(state.gpr[Rdx] == turns - 1);
            CHECK((state.rflags & 0x8d5) == flags_of_compare(turns, state.gpr[Rbp]));
        }
    }
    CHECK(ran == 20);
}

} // namespace
} // namespace doppel::cpu::x86::frontend
