// SPDX-License-Identifier: Apache-2.0
/// Loops that run without checks, made as soon as they can be, against the interpreter: page ends,
/// faults in some turn, pages that are read-only or hold the loop itself, side exits, dirty bits.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <string>

#include <fmt/core.h>

#include "cpu/x86/decoder/instruction.hpp"
#include "cpu/x86/frontend/test_machine.hpp"
#include "cpu/x86/system/system.hpp"

namespace doppel::cpu::x86::frontend {
namespace {

using Bytes = std::vector<std::uint8_t>;

/// A memory operand; index kNoRegister: none.
struct Operand8 {
    unsigned base = Rbx, index = kNoRegister, scale = 1;
    std::int32_t displacement = 0;
};

/// Machine code of loops, written down one instruction after the other.
class Code64 {
public:
    Bytes bytes;

    void put(std::initializer_list<unsigned> some) {
        for (const unsigned byte : some)
            bytes.push_back(static_cast<std::uint8_t>(byte));
    }
    void put32(std::int32_t value) {
        for (unsigned i = 0; i < 4; ++i)
            bytes.push_back(static_cast<std::uint8_t>(static_cast<std::uint32_t>(value) >> 8 * i));
    }
    /// `prefix` 0: none. `opcode` above 0xff: of the map 0F.
    void memory(unsigned prefix, bool wide, unsigned opcode, unsigned reg, const Operand8& at) {
        const bool indexed = at.index != kNoRegister;
        if (prefix != 0)
            put({prefix});
        put({0x40 | (wide ? 8u : 0u) | (reg & 8) >> 1 | (indexed ? (at.index & 8) >> 2 : 0) |
             (at.base & 8) >> 3});
        if (opcode > 0xff)
            put({0x0f});
        put({opcode & 0xff, 0x84 | (reg & 7) << 3}); // mod 2, SIB
        const unsigned log2 = at.scale == 8 ? 3 : at.scale == 4 ? 2 : at.scale == 2 ? 1 : 0;
        put({log2 << 6 | (indexed ? at.index & 7 : 4) << 3 | (at.base & 7)});
        put32(at.displacement);
    }
    /// 83 /op reg, imm8 with 64 bits.
    void immediate(unsigned op, unsigned reg, int value) {
        put({0x48 | (reg & 8) >> 3, 0x83, 0xc0 | op << 3 | (reg & 7),
             static_cast<unsigned>(value) & 0xff});
    }
    /// lea reg, [reg + value]
    void lea(unsigned reg, std::int32_t value) {
        memory(0, true, 0x8d, reg, {reg, kNoRegister, 1, value});
    }
    void jump_back(unsigned condition, std::size_t to) {
        put({0x0f, 0x80 | condition});
        put32(static_cast<std::int32_t>(to) - static_cast<std::int32_t>(bytes.size()) - 4);
    }
};

constexpr unsigned kAdd = 0, kSub = 5, kCmp = 7;

class LoopMaker {
public:
    explicit LoopMaker(std::uint64_t seed) : random_{seed} {}
    std::uint64_t next() { return random_(); }
    std::uint64_t below(std::uint64_t n) { return random_() % n; }

    Bytes make() {
        Code64 code;
        if (below(3) == 0) // the first turn is part of the block that leads to the loop
            compute(code);
        top_ = code.bytes.size();
        const auto accesses = 1 + below(5);
        const auto unrolled = below(6) == 0;
        const auto leaves = below(3) == 0;
        for (std::uint64_t i = 0; i < accesses; ++i) {
            access(code, some_operand());
            if (below(4) == 0)
                compute(code);
        }
        if (unrolled)
            small_loop(code);
        if (leaves) { // test al, 63; je to the HLT behind the loop
            code.put({0xa8, 63});
            side_exit_ = code.bytes.size() + 2;
            code.put({0x0f, 0x84, 0, 0, 0, 0});
            access(code, some_operand());
        }
        steps(code);
        end(code);
        code.put({0xf4});
        if (leaves)
            code.bytes[side_exit_] = static_cast<std::uint8_t>(code.bytes.size() - side_exit_ - 5);
        return code.bytes;
    }

private:
    /// rbx, rsi, r8 and r13 walk, rdi, r12 and rsp stay, rcx counts.
    Operand8 some_operand() {
        static constexpr unsigned kBases[] = {Rbx, Rbx, Rsi, Rsi, R8, R13, Rdi, R12, Rsp};
        Operand8 at{kBases[below(std::size(kBases))]};
        if (below(4) == 0) {
            at.index = Rcx;
            at.scale = 1u << below(4);
        }
        at.displacement = static_cast<std::int32_t>(below(6)) * 8 - 8;
        return at;
    }
    void access(Code64& code, const Operand8& at) {
        static constexpr unsigned kData[] = {Rax, Rdx, R9, R14};
        const unsigned data = kData[below(4)];
        switch (below(12)) {
        case 0: code.memory(0, true, 0x8b, data, at); break;
        case 1: code.memory(0, true, 0x89, data, at); break;
        case 2: code.memory(0, true, 0x03, data, at); break;
        case 3: code.memory(0, true, 0x01, data, at); break;
        case 4: code.memory(0, false, 0x88, data, at); break;
        case 5: code.memory(0, false, 0x1b6, data, at); break;
        case 6: code.memory(0xf2, false, 0x110, data & 7, at); break; // movsd
        case 7: code.memory(0xf2, false, 0x111, data & 7, at); break;
        case 8: code.memory(0xf2, false, 0x158, data & 7, at); break; // addsd
        case 9: code.memory(0, false, 0x128, data & 7, at); break;    // movaps: wants alignment
        case 10: code.memory(0, true, 0x13, data, at); break;         // adc
        default: code.memory(0, true, 0x3b, data, at); break;         // cmp
        }
    }
    void compute(Code64& code) {
        switch (below(5)) {
        case 0: code.put({0x48, 0x01, 0xc2}); break;        // add rdx, rax
        case 1: code.put({0x49, 0xd1, 0xce}); break;        // ror r14, 1
        case 2: code.put({0x0f, 0x92, 0xc2}); break;        // setb dl
        case 3: code.put({0x4d, 0x11, 0xf1}); break;        // adc r9, r14
        default: code.put({0xf2, 0x0f, 0x59, 0xc1}); break; // mulsd xmm0, xmm1
        }
    }
    /// Three turns that are known.
    void small_loop(Code64& code) {
        code.put({0x45, 0x31, 0xd2}); // xor r10d, r10d
        const std::size_t top = code.bytes.size();
        access(code, {below(2) == 0 ? Rbx : Rdi, R10, 1, 0});
        code.immediate(kAdd, R10, 8);
        code.immediate(kCmp, R10, 24);
        code.jump_back(5, top);
    }
    void steps(Code64& code) {
        static constexpr int kSteps[] = {8, 8, 16, 4, 1, 24, 56, 104, -8, -24, 64};
        const auto step = [this] { return kSteps[below(std::size(kSteps))]; };
        code.immediate(kAdd, Rbx, step());
        if (below(2) == 0)
            code.immediate(kSub, Rsi, -step());
        if (below(2) == 0)
            code.lea(R8, step() * (below(8) == 0 ? 20 : 1));
        if (below(2) == 0)
            code.immediate(kAdd, R13, step());
        code.immediate(kAdd, Rcx, 1);
        if (below(5) == 0) // once more, after the step
            access(code, some_operand());
    }
    void end(Code64& code) {
        switch (below(4)) {
        case 0:
            code.immediate(kSub, Rbp, 1);
            code.jump_back(5, top_);
            break;
        case 1:
            code.immediate(kAdd, Rbp, -1);
            code.put({0x83, 0xfd, 0x00}); // cmp ebp, 0
            code.jump_back(15, top_);     // jg
            break;
        case 2:
            code.put({0x48, 0xff, 0xcd}); // dec rbp
            code.jump_back(5, top_);
            break;
        default:
            code.put({0x48, 0x39, 0xe9}); // cmp rcx, rbp
            code.jump_back(2, top_);      // jb
            break;
        }
    }

    std::mt19937_64 random_;
    std::size_t top_ = 0;
    std::size_t side_exit_ = 0;
};

struct LoopCase {
    Bytes code, data;
    std::array<std::uint64_t, 16> gpr{};
    std::array<std::byte, XsaveArea::kBytes> xsave{};
    std::uint64_t at = 0;
};

LoopCase make_case(LoopMaker& maker) {
    LoopCase made{.code = maker.make(), .data = {}};
    for (auto& value : made.gpr)
        value = maker.next() >> maker.below(64);
    const std::uint64_t aligned = maker.below(4) == 0 ? 1 : 8;
    for (const unsigned reg : {Rbx, Rsi, R8, R13, Rdi, R12})
        made.gpr.at(reg) = kDataAt + 0x80 + maker.below(0x2d00) / aligned * aligned;
    made.gpr[Rsp] = kDataAt + 0x1000 + maker.below(0x1e0) * 8;
    made.gpr[Rcx] = maker.below(8);
    made.gpr[Rbp] = 1 + maker.below(maker.below(3) == 0 ? 1500 : 80);
    made.data.resize(kDataBytes);
    for (auto& byte : made.data)
        byte = static_cast<std::uint8_t>(maker.next());
    const std::uint16_t control = 0x37f;
    const std::uint32_t mxcsr = maker.below(4) == 0 ? 0x1f00 : 0x1f80; // invalid operations fault
    std::memcpy(made.xsave.data(), &control, 2);
    std::memcpy(made.xsave.data() + 24, &mxcsr, 4);
    for (std::size_t i = 160; i < 416; ++i)
        made.xsave[i] = static_cast<std::byte>(maker.next());
    made.xsave[512] = std::byte{7};
    made.at = kCodeAt + 0x1000 * maker.below(64) + maker.below(3600);
    return made;
}

/// The last pages of the data: read-only, not present.
constexpr std::uint64_t kDataEntries = kTablesAt + 0x3000 + (kDataAt >> 21) * 0x1000;
constexpr std::array<std::uint64_t, 4> kDataRights{7, 7, 5, 6};

VmExit run(TestMachine& machine, const LoopCase& test) {
    for (std::uint64_t page = 0; page < kDataRights.size(); ++page)
        (void)machine.memory().store(memory::Gpa{kDataEntries + page * 8},
                                     kDataAt | page << 12 | kDataRights.at(page));
    machine.enter_long_mode();
    machine.state().cr4 |= CR4_OSXMMEXCPT;
    machine.write(test.at, test.code);
    machine.write(kDataAt, test.data);
    machine.state().gpr = test.gpr;
    machine.state().rip = test.at;
    machine.state().xsave.bytes = test.xsave;
    machine.vcpu().state_changed();
    return machine.vcpu().run();
}

std::string difference(TestMachine& a, TestMachine& b) {
    const CpuState& x = a.state();
    const CpuState& y = b.state();
    for (unsigned i = 0; i < 16; ++i)
        if (x.gpr[i] != y.gpr[i])
            return fmt::format("gpr {}: {:#x} {:#x}", i, x.gpr[i], y.gpr[i]);
    if (x.rip != y.rip || x.rflags != y.rflags || x.cr2 != y.cr2)
        return fmt::format("rip {:#x} {:#x} rflags {:#x} {:#x} cr2 {:#x} {:#x}", x.rip, y.rip,
                           x.rflags, y.rflags, x.cr2, y.cr2);
    for (std::size_t i = 160; i < 416; ++i)
        if (x.xsave.bytes[i] != y.xsave.bytes[i])
            return fmt::format("xsave byte {}", i);
    const auto p = a.data();
    const auto q = b.data();
    const auto [mine, theirs] = std::ranges::mismatch(p, q);
    if (mine != p.end())
        return fmt::format("memory at {:#x}",
                           kDataAt + static_cast<std::uint64_t>(mine - p.begin()));
    for (std::uint64_t page = 0; page < kDataRights.size(); ++page) {
        std::array<std::byte, 1> s{};
        std::array<std::byte, 1> t{};
        (void)a.memory().read({kDataEntries + page * 8}, s);
        (void)b.memory().read({kDataEntries + page * 8}, t);
        if (((s[0] ^ t[0]) & std::byte{0x40}) != std::byte{0})
            return fmt::format("dirty bit of page {}", page);
    }
    return {};
}

std::string hex(std::span<const std::uint8_t> bytes) {
    std::string text;
    for (const auto byte : bytes)
        text += fmt::format("{:02x}", byte);
    return text;
}

std::uint64_t number(const char* variable, std::uint64_t otherwise) {
    const char* const text = std::getenv(variable);
    return text != nullptr ? std::strtoull(text, nullptr, 0) : otherwise;
}

TranslatorOptions at_once() {
    TranslatorOptions options;
    options.tuning.loop_threshold = 1;
    return options;
}

TEST_CASE("loops without checks do what the interpreter does") {
    TestMachine interpreter{TestMachine::Kind::Interpreter};
    TestMachine translator{TestMachine::Kind::Translator, nullptr, at_once()};
    LoopMaker maker{number("DOPPEL_SEED", 7)};
    const std::uint64_t count = number("DOPPEL_CASES", 4'000);
    unsigned failures = 0;
    for (std::uint64_t i = 0; i < count && failures < 10; ++i) {
        const LoopCase test = make_case(maker);
        if (std::getenv("DOPPEL_TRACE") != nullptr)
            fmt::print(stderr, "case {} at {:#x} code {}\n", i, test.at, hex(test.code));
        const VmExit x = run(interpreter, test);
        const VmExit y = run(translator, test);
        const std::string text =
            x.index() != y.index() ? "different exit" : difference(interpreter, translator);
        if (text.empty())
            continue;
        ++failures;
        FAIL_CHECK(fmt::format("case {}: {} code {} at {:#x}", i, text, hex(test.code), test.at));
    }
    CHECK(failures == 0);
    CHECK(translator.vcpu().stats().loops > count / 4);
}

/// A store, 256 bytes further each turn, that once hits the immediate of the loop's `add rdx, 1`.
TEST_CASE("a loop without checks that writes into itself") {
    TestMachine interpreter{TestMachine::Kind::Interpreter};
    TestMachine translator{TestMachine::Kind::Translator, nullptr, at_once()};
    LoopMaker maker{11};
    for (unsigned i = 0; i < 200; ++i) {
        LoopCase test = make_case(maker);
        Code64 code;
        code.put({0x88, 0x07}); // mov [rdi], al
        code.immediate(kAdd, Rdx, 1);
        const std::size_t patched = code.bytes.size() - 1;
        code.lea(Rdi, 256);
        code.immediate(kSub, Rbp, 1);
        code.jump_back(5, 0);
        code.put({0xf4});
        test.code = code.bytes;
        test.gpr[Rax] = 5;
        test.gpr[Rdx] = 0;
        test.gpr[Rbp] = 64;
        test.gpr[Rdi] = test.at + patched - 256 * maker.below(60);
        (void)run(interpreter, test);
        (void)run(translator, test);
        INFO("case ", i);
        CHECK(interpreter.state().gpr[Rdx] != 64);
        REQUIRE(difference(interpreter, translator) == "");
    }
    CHECK(translator.vcpu().stats().loops > 100);
}

/// A group that lies in two pages never passes: every turn is one of the variant that checks each
/// access, and no C++ is needed to get there.
TEST_CASE("a loop whose accesses lie in two pages stays in translated code") {
    for (const bool makes_flags_first : {false, true}) {
        TestMachine machine{TestMachine::Kind::Translator, nullptr, at_once()};
        machine.enter_long_mode();
        Code64 code;
        if (makes_flags_first)
            code.put({0x31, 0xd2});             // xor edx, edx
        code.memory(0, true, 0x03, Rdx, {Rdi}); // add rdx, [rdi]
        code.memory(0, true, 0x03, Rdx, {Rdi, kNoRegister, 1, 8});
        code.immediate(kAdd, Rcx, 1);
        code.put({0x48, 0x39, 0xe9}); // cmp rcx, rbp
        code.jump_back(5, 0);
        code.put({0xf4});
        machine.write(kCodeAt, code.bytes);
        machine.state().gpr[Rdi] = kDataAt + 0x1000 - 8;
        machine.state().gpr[Rbp] = 5000;
        machine.vcpu().state_changed();
        CHECK(std::holds_alternative<HaltExit>(machine.vcpu().run()));
        CHECK(machine.state().gpr[Rcx] == 5000);
        CHECK(machine.vcpu().stats().loops == 1);
        std::uint64_t exits = 0;
        for (const auto& exit : machine.vcpu().stats().exits)
            exits += exit.count;
        CHECK(exits < 50);
    }
}

TEST_CASE("a loop without checks is left at a kick, between two turns") {
    TestMachine machine{TestMachine::Kind::Translator, nullptr, at_once()};
    machine.enter_long_mode();
    Code64 code;
    code.memory(0, true, 0x03, Rdx, {Rdi}); // add rdx, [rdi]
    code.immediate(kAdd, Rcx, 1);
    code.put({0x48, 0x39, 0xe9}); // cmp rcx, rbp
    code.jump_back(5, 0);
    machine.write(kCodeAt, code.bytes);
    machine.write(kDataAt, Bytes{3, 0, 0, 0, 0, 0, 0, 0});
    machine.state().gpr[Rdi] = kDataAt;
    machine.vcpu().state_changed();
    unsigned ran = 0; // a kick may come before the run that it ends
    for (unsigned i = 0; i < 500 && ran < 10; ++i) {
        const std::uint64_t before = machine.state().gpr[Rcx];
        CHECK(std::holds_alternative<KickExit>(machine.run_until_kicked()));
        CHECK(machine.state().rip == kCodeAt);
        ran += machine.state().gpr[Rcx] > before ? 1 : 0;
        CHECK(machine.state().gpr[Rdx] == 3 * machine.state().gpr[Rcx]);
    }
    CHECK(ran == 10);
    CHECK(machine.vcpu().stats().loops == 1);
}

} // namespace
} // namespace doppel::cpu::x86::frontend
