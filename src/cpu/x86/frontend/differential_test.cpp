// SPDX-License-Identifier: Apache-2.0
/// Random instruction streams on both engines: registers, flags, memory and the fault must agree.
#include <doctest/doctest.h>

#include <algorithm>

#include "cpu/x86/frontend/test_streams.hpp"

namespace doppel::cpu::x86::frontend {
namespace {

/// `cases` streams of one kind of code.
void compare_engines(Code code, std::uint64_t cases) {
    TestMachine interpreter{TestMachine::Kind::Interpreter};
    TestMachine translator{TestMachine::Kind::Translator};
    const auto model = *description::find_cpu_model(description::default_cpu_model());
    const FeatureSet features = features_of(model);
    Generator generator{number("DOPPEL_SEED", 1), code};
    const std::uint64_t count = number("DOPPEL_CASES", cases);
    unsigned failures = 0;
    for (std::uint64_t i = 0; i < count && failures < 10; ++i) {
        const Case test = make_case(generator, features);
        const std::uint64_t at = kCodeAt + 0x1000 * (i % 64) + generator.below(4096);
        if (std::getenv("DOPPEL_TRACE") != nullptr)
            fmt::print(stderr, "case {} at {:#x} code {}\n", i, at, hex(test.code));
        const VmExit x = run(interpreter, code, test, at);
        const VmExit y = run(translator, code, test, at);
        std::string text = x.index() != y.index() ? "different exit"
                                                  : difference(interpreter, translator,
                                                               std::holds_alternative<HaltExit>(x)
                                                                   ? test.undefined
                                                                   : test.ever_undefined);
        if (text.empty())
            continue;
        ++failures;
        FAIL_CHECK(fmt::format("case {}: {} code {} at {:#x} flags {:#x}", i, text, hex(test.code),
                               at, test.rflags));
    }
    CHECK(failures == 0);
}

TEST_CASE("random instructions do the same on both engines") {
    compare_engines(Code::Long64, 20'000);
}

TEST_CASE("random 32-bit instructions do the same on both engines in compatibility mode") {
    compare_engines(Code::Compatibility32, 20'000);
}

TEST_CASE("random 32-bit instructions do the same on both engines without paging") {
    compare_engines(Code::Protected32, 10'000);
}

/// A CPU may set accessed bits for accesses that do not come about, but not dirty bits.
bool same_dirty_bits(TestMachine& a, TestMachine& b) {
    std::array<std::byte, kDataRights.size() * 8> x{};
    std::array<std::byte, kDataRights.size() * 8> y{};
    (void)a.memory().read({kDataEntries}, x);
    (void)b.memory().read({kDataEntries}, y);
    const auto differs = [](std::byte p, std::byte q) {
        return ((p ^ q) & std::byte{0x40}) != std::byte{0};
    };
    for (std::size_t i = 0; i < x.size(); i += 8)
        if (differs(x.at(i), y.at(i)))
            return false;
    return true;
}

void compare_groups(Code code, std::uint64_t cases) {
    TestMachine interpreter{TestMachine::Kind::Interpreter};
    TestMachine translator{TestMachine::Kind::Translator};
    const FeatureSet features =
        features_of(*description::find_cpu_model(description::default_cpu_model()));
    Generator generator{number("DOPPEL_SEED", 3), code};
    generator.gather();
    const std::uint64_t count = number("DOPPEL_CASES", cases);
    unsigned failures = 0;
    for (std::uint64_t i = 0; i < count && failures < 10; ++i) {
        Case test = make_case(generator, features);
        for (const unsigned reg : {Rbx, Rsi, R11, R14})
            test.gpr.at(reg) = kDataAt + 0x1000 * generator.below(4) +
                               (generator.below(4) == 0 ? 0xfa0 + generator.below(128)
                                                        : 0x100 + generator.below(0xd00));
        const std::uint64_t at = kCodeAt + 0x1000 * (i % 64) + generator.below(4096);
        protect_data(interpreter);
        protect_data(translator);
        const VmExit x = run(interpreter, code, test, at);
        const VmExit y = run(translator, code, test, at);
        std::string text = x.index() != y.index()
                               ? "different exit"
                               : difference(interpreter, translator, test.ever_undefined);
        if (text.empty() && !test.early_dirty && !same_dirty_bits(interpreter, translator))
            text = "different dirty bits";
        if (text.empty())
            continue;
        ++failures;
        FAIL_CHECK(fmt::format("case {}: {} code {} at {:#x} flags {:#x}", i, text, hex(test.code),
                               at, test.rflags));
    }
    CHECK(failures == 0);
}

TEST_CASE("what hosts make of it does not matter") {
    TestMachine interpreter{TestMachine::Kind::Interpreter};
    TestMachine translator{TestMachine::Kind::Translator};
    Generator generator{number("DOPPEL_SEED", 3), Code::Long64};
    Case test = make_case(
        generator, features_of(*description::find_cpu_model(description::default_cpu_model())));
    test.code = {0xf3, 0x49, 0x90, 0xf4}; // xchg rax, r8; hlt
    CHECK(run(interpreter, Code::Long64, test, kCodeAt).index() ==
          run(translator, Code::Long64, test, kCodeAt).index());
    CHECK(difference(interpreter, translator, test.ever_undefined) == "");
}

TEST_CASE("accesses through the same registers, at the edges of pages with other rights") {
    compare_groups(Code::Long64, 10'000);
}

TEST_CASE("the same of 32-bit code") { compare_groups(Code::Compatibility32, 5'000); }

/// A loop whose first instructions load through rbx, which walks towards pages that are read-only
/// and not present; the flags of its end are dead there, but a fault shows them.
std::vector<std::uint8_t> make_loop(Generator& generator, const FeatureSet& features) {
    using Bytes = std::vector<std::uint8_t>;
    const Bytes heads[] = {
        {0x48, 0x8b, 0x43, 0x08},                                      // mov rax, [rbx+8]
        {0x8a, 0x13, 0x48, 0x8b, 0x43, 0x18},                          // mov dl, [rbx]; …
        {0x48, 0x8d, 0x4b, 0x10, 0x48, 0x03, 0x43, 0x20},              // lea; add rax, [rbx+32]
        {0x48, 0x89, 0x53, 0x08},                                      // mov [rbx+8], rdx
        {0xf2, 0x0f, 0x10, 0x43, 0x08, 0xf2, 0x0f, 0x58, 0x03},        // movsd; addsd
        {0x4c, 0x8b, 0x6b, 0x08, 0x49, 0x01, 0xc5}};                   // mov r13, …; add r13
    const Bytes tails[] = {{0x48, 0x83, 0xed, 0x01},                   // sub rbp, 1
                           {0x48, 0xff, 0xcd, 0x48, 0x85, 0xed},       // dec rbp; test rbp, rbp
                           {0x49, 0x83, 0xef, 0x01},                   // sub r15, 1
                           {0x48, 0x83, 0xc5, 0xff, 0x83, 0xfd, 0x00}, // add rbp, -1; cmp ebp, 0
                           {0x48, 0xff, 0xcd}};                        // dec rbp
    Bytes code = heads[generator.below(std::size(heads))];
    for (std::uint64_t i = generator.below(4); i > 0; --i) {
        const Bytes bytes = generator.instruction(features);
        Instruction in;
        (void)decode(bytes, CodeSize::Bits64, in);
        constexpr std::uint16_t kKept = 1u << Rbp | 1u << Rbx | 1u << R15;
        if ((in.registers_written & kKept) == 0 && in.flags_undefined == 0)
            code.insert(code.end(), bytes.begin(), bytes.end());
    }
    const auto step = static_cast<std::uint8_t>(generator.below(2) == 0 ? 8 : 104);
    for (const std::uint8_t byte : Bytes{0x48, 0x83, 0xc3, step}) // add rbx, step
        code.push_back(byte);
    const Bytes& tail = tails[generator.below(std::size(tails))];
    code.insert(code.end(), tail.begin(), tail.end());
    code.push_back(0x75); // jne to the beginning
    code.push_back(static_cast<std::uint8_t>(-static_cast<int>(code.size() + 1)));
    code.push_back(0xf4);
    return code;
}

TEST_CASE("a loop that faults shows the flags of its last turn") {
    TestMachine interpreter{TestMachine::Kind::Interpreter};
    TestMachine translator{TestMachine::Kind::Translator};
    const FeatureSet features =
        features_of(*description::find_cpu_model(description::default_cpu_model()));
    const char* const seed = std::getenv("DOPPEL_SEED");
    const char* const cases = std::getenv("DOPPEL_CASES");
    Generator generator{seed != nullptr ? std::strtoull(seed, nullptr, 0) : 5};
    const std::uint64_t count = cases != nullptr ? std::strtoull(cases, nullptr, 0) : 5'000;
    unsigned failures = 0;
    for (std::uint64_t i = 0; i < count && failures < 10; ++i) {
        Case test = make_case(generator, features);
        test.code = make_loop(generator, features);
        test.gpr.at(Rbx) = kDataAt + generator.below(0x3000);
        test.gpr.at(Rbp) = test.gpr.at(R15) = 1 + generator.below(60);
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

/// Pushes, pops, moves of rsp, calls and what may come between them, near the edges of pages.
std::vector<std::uint8_t> make_stack_code(Generator& generator, const FeatureSet& features) {
    using Bytes = std::vector<std::uint8_t>;
    Bytes code;
    const auto add = [&code](const Bytes& bytes) {
        code.insert(code.end(), bytes.begin(), bytes.end());
    };
    for (std::uint64_t i = 2 + generator.below(14); i > 0; --i) {
        const auto reg = static_cast<std::uint8_t>(generator.below(8));
        const auto rex = static_cast<std::uint8_t>(0x40 | generator.below(2));
        const auto small = static_cast<std::uint8_t>(generator.below(8) * 8);
        switch (generator.below(12)) {
        case 0:
        case 1:
        case 2: add({rex, static_cast<std::uint8_t>(0x50 | reg)}); break; // push
        case 3:
        case 4: add({rex, static_cast<std::uint8_t>(0x58 | reg)}); break; // pop
        case 5: add({0x6a, small}); break;                                // push imm
        case 6: add({0x48, 0x83, 0xec, small}); break;                    // sub rsp, imm
        case 7: add({0x48, 0x83, 0xc4, small}); break;                    // add rsp, imm
        case 8: add({0xe8, 0, 0, 0, 0}); break;                           // call to what follows
        case 9: add({0x48, 0x8b, 0x44, 0x24, small}); break;              // mov rax, [rsp + small]
        case 10: add({0x39, 0xd8, 0x74, 0x00}); break;                    // cmp eax, ebx; je
        default: {
            const Bytes bytes = generator.instruction(features);
            Instruction in;
            (void)decode(bytes, CodeSize::Bits64, in);
            if (in.flags_undefined == 0)
                add(bytes);
        }
        }
    }
    switch (generator.below(3)) { // lea rax, [the hlt]; push rax; ret, or call [rsp]
    case 0: add({0x48, 0x8d, 0x05, 2, 0, 0, 0, 0x50, 0xc3}); break;
    case 1: add({0x48, 0x8d, 0x05, 4, 0, 0, 0, 0x50, 0xff, 0x14, 0x24}); break;
    default: break;
    }
    code.push_back(0xf4);
    return code;
}

TEST_CASE("a stack that is moved in many ways, at the edges of pages with other rights") {
    TestMachine interpreter{TestMachine::Kind::Interpreter};
    TestMachine translator{TestMachine::Kind::Translator};
    const FeatureSet features =
        features_of(*description::find_cpu_model(description::default_cpu_model()));
    Generator generator{number("DOPPEL_SEED", 6)};
    const std::uint64_t count = number("DOPPEL_CASES", 10'000);
    unsigned failures = 0;
    for (std::uint64_t i = 0; i < count && failures < 10; ++i) {
        Case test = make_case(generator, features);
        test.code = make_stack_code(generator, features);
        const std::uint64_t page = kDataAt + 0x1000 * (1 + generator.below(3));
        test.gpr.at(Rsp) = generator.below(2) == 0 ? page + 64 - generator.below(128)
                                                   : page - 0x800 + generator.below(16) * 8;
        const std::uint64_t at = kCodeAt + 0x1000 * (i % 64) + generator.below(3900);
        protect_data(interpreter);
        protect_data(translator);
        const VmExit x = run(interpreter, Code::Long64, test, at);
        const VmExit y = run(translator, Code::Long64, test, at);
        const std::string text =
            x.index() != y.index() ? "different exit" : difference(interpreter, translator, 0);
        if (text.empty())
            continue;
        ++failures;
        FAIL_CHECK(fmt::format("case {}: {} code {} at {:#x} rsp {:#x}", i, text, hex(test.code),
                               at, test.gpr.at(Rsp)));
    }
    CHECK(failures == 0);
}

TEST_CASE("REP MOVS and REP STOS go from page to page, up to one that they must not touch") {
    TestMachine interpreter{TestMachine::Kind::Interpreter};
    TestMachine translator{TestMachine::Kind::Translator};
    Generator generator{4};
    const std::vector<std::uint8_t> forms[] = {
        {0xf3, 0xa4}, {0xf3, 0x66, 0xa5}, {0xf3, 0xa5}, {0xf3, 0x48, 0xa5},
        {0xf3, 0xaa}, {0xf3, 0x66, 0xab}, {0xf3, 0xab}, {0xf3, 0x48, 0xab}};
    for (unsigned i = 0; i < 2'000; ++i) {
        Case test = make_case(generator, {});
        test.code = forms[i % 8];
        test.code.push_back(0xf4);
        for (const unsigned reg : {Rdi, Rsi}) // aligned, so that no element is in two pages, or not
            test.gpr.at(reg) =
                kDataAt + (generator.below(0x3000) & ~(generator.below(2) == 0 ? 7u : 0u));
        test.gpr.at(Rcx) = generator.below(8) == 0 ? generator.below(4200) : generator.below(1200);
        const bool reversed = generator.below(2) == 0;
        protect_data(interpreter, reversed);
        protect_data(translator, reversed);
        const VmExit x = run(interpreter, Code::Long64, test, kCodeAt);
        const VmExit y = run(translator, Code::Long64, test, kCodeAt);
        const std::string text =
            x.index() != y.index() ? "different exit" : difference(interpreter, translator, 0);
        INFO(hex(test.code), " rcx ", test.gpr[Rcx], " rsi ", test.gpr[Rsi], " rdi ",
             test.gpr[Rdi]);
        REQUIRE(text == "");
    }
}

/// The same case again on both, at most `limit` instructions of it; "" or what differs.
std::string limited_difference(TestMachine& interpreter, InstructionMeter& theirs,
                               TestMachine& translator, InstructionMeter& mine, Code code,
                               const Case& test, std::uint64_t at, std::uint64_t limit) {
    const std::uint64_t before[] = {theirs.executed(), mine.executed()};
    theirs.set_limit(before[0] + limit);
    mine.set_limit(before[1] + limit);
    const VmExit x = run(interpreter, code, test, at);
    const VmExit y = run(translator, code, test, at);
    if (x.index() != y.index())
        return fmt::format("exit {} {}", x.index(), y.index());
    const std::uint64_t counts[] = {theirs.executed() - before[0], mine.executed() - before[1]};
    if (counts[0] != counts[1])
        return fmt::format("executed {} {}", counts[0], counts[1]);
    return difference(interpreter, translator, test.ever_undefined);
}

/// Once the marker of "no stack page is cached" was an address that a guest could use.
TEST_CASE("a push to an address that is not canonical faults on both engines") {
    for (const auto kind : {TestMachine::Kind::Interpreter, TestMachine::Kind::Translator}) {
        TestMachine machine{kind};
        machine.enter_long_mode();
        const std::uint8_t code[] = {0x50, 0x58, 0xf4}; // push rax; pop rax; hlt
        machine.write(kCodeAt, code);
        machine.state().gpr[Rsp] = 0x4000'0000'0000'0100;
        machine.vcpu().state_changed();
        CHECK(std::holds_alternative<ShutdownExit>(machine.run_bounded())); // there is no IDT
        CHECK(machine.state().rip == kCodeAt);
    }
}

TEST_CASE("a return to an address that is not canonical faults before it moves rsp") {
    for (const auto kind : {TestMachine::Kind::Interpreter, TestMachine::Kind::Translator}) {
        TestMachine machine{kind};
        for (const unsigned released : {0u, 8u, 0xf8u, 0x7ff8u, 0xcfb8u, 0xfff7u, 0xffffu}) {
            INFO("ret " << released);
            machine.enter_long_mode();
            const std::uint8_t code[] = {0xc2, static_cast<std::uint8_t>(released),
                                         static_cast<std::uint8_t>(released >> 8)};
            machine.write(kCodeAt, code);
            machine.write(kDataAt, std::array<std::uint8_t, 8>{1, 1, 1, 1, 1, 1, 1, 1});
            machine.state().gpr[Rsp] = kDataAt;
            machine.state().rip = kCodeAt;
            machine.vcpu().state_changed();
            CHECK(std::holds_alternative<ShutdownExit>(machine.run_bounded())); // there is no IDT
            CHECK(machine.state().rip == kCodeAt);
            CHECK(machine.state().gpr[Rsp] == kDataAt);
        }
    }
}

void compare_counts(Code code, std::uint64_t cases) {
    InstructionMeter theirs;
    InstructionMeter mine;
    TestMachine interpreter{TestMachine::Kind::Interpreter, &theirs};
    TestMachine translator{TestMachine::Kind::Translator, &mine};
    const FeatureSet features =
        features_of(*description::find_cpu_model(description::default_cpu_model()));
    Generator generator{number("DOPPEL_SEED", 2), code};
    const std::uint64_t count = number("DOPPEL_CASES", cases);
    unsigned failures = 0;
    for (std::uint64_t i = 0; i < count && failures < 10; ++i) {
        const Case test = make_case(generator, features);
        const std::uint64_t at = kCodeAt + 0x1000 * (i % 64) + generator.below(4096);
        const std::uint64_t limit = 1 + generator.below(14);
        const std::string text =
            limited_difference(interpreter, theirs, translator, mine, code, test, at, limit);
        if (text.empty())
            continue;
        ++failures;
        FAIL_CHECK(fmt::format("case {}, limit {}: {} code {} at {:#x} flags {:#x}", i, limit, text,
                               hex(test.code), at, test.rflags));
    }
    CHECK(failures == 0);
    CHECK(theirs.executed() > count);
}

TEST_CASE("both engines count alike and stop at the same instruction") {
    compare_counts(Code::Long64, 10'000);
}

TEST_CASE("both engines count alike in 32-bit code") {
    compare_counts(Code::Compatibility32, 5'000);
}

} // namespace
} // namespace doppel::cpu::x86::frontend
