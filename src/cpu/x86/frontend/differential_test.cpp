// SPDX-License-Identifier: Apache-2.0
/// Random instruction streams on both engines: registers, flags, memory and the fault must agree.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <string>

#include <fmt/core.h>

#include "cpu/x86/decoder/decoder.hpp"
#include "cpu/x86/frontend/classify.hpp"
#include "cpu/x86/frontend/frame.hpp"
#include "cpu/x86/frontend/test_machine.hpp"
#include "cpu/x86/system/system.hpp"

namespace doppel::cpu::x86::frontend {
namespace {

class Generator {
public:
    explicit Generator(std::uint64_t seed, Code code = Code::Long64)
        : random_{seed}, wide_{code == Code::Long64}, paging_{code != Code::Protected32} {}

    /// Most memory operands go through the same few registers from now on.
    void gather() { gathered_ = true; }

    std::uint64_t next() { return random_(); }
    std::uint64_t below(std::uint64_t n) { return random_() % n; }

    /// One instruction of a kind that is translated; no branches except short forward ones.
    std::vector<std::uint8_t> instruction(const FeatureSet& features) {
        for (;;) {
            std::vector<std::uint8_t> bytes;
            for (unsigned i = 0; i < 15; ++i)
                bytes.push_back(static_cast<std::uint8_t>(random_()));
            shape(bytes);
            Instruction in;
            if (decode(bytes, code_size(mode()), in) != DecodeStatus::Ok)
                continue;
            const auto treatment = classify(in, mode(), features);
            if (!acceptable(in, treatment))
                continue;
            bytes.resize(in.length);
            tame(bytes, in);
            return bytes;
        }
    }

    std::uint32_t mode() const {
        return mode::kX87 | mode::kSse | mode::kAvx | (wide_ ? 0 : mode::kCode32);
    }

private:
    void shape(std::vector<std::uint8_t>& bytes) {
        switch (below(wide_ ? 8 : 7)) {
        case 0: break;
        case 1: bytes[0] = 0x0f; break;
        case 2: bytes[0] = 0x66; break;
        case 3: bytes[0] = 0xc5; break;
        case 4:
            bytes[0] = 0xc4;
            bytes[1] = static_cast<std::uint8_t>((bytes[1] & 0xe0) | (1 + below(3)));
            if (below(16) == 0) { // MULX, which has two results
                bytes[1] = static_cast<std::uint8_t>((bytes[1] & 0xe0) | 2);
                bytes[2] = static_cast<std::uint8_t>((bytes[2] & 0xf8) | 3);
                bytes[3] = 0xf6;
            }
            break;
        case 5:
            if (!wide_) {
                bytes[0] = static_cast<std::uint8_t>(0x64 | (bytes[0] & 1)); // FS, GS
                break;
            }
            bytes[0] = static_cast<std::uint8_t>(0x40 | (bytes[0] & 15));
            bytes[1] = 0x0f;
            break;
        default:
            if (wide_)
                bytes[0] = static_cast<std::uint8_t>(0x40 | (bytes[0] & 15));
            break;
        }
        // In 32-bit code these are VEX with the two upper bits set.
        if (!wide_ && (bytes[0] & 0xfe) == 0xc4 && below(4) != 0)
            bytes[1] |= 0xc0;
    }
    bool acceptable(const Instruction& in, Treatment treatment) {
        if (treatment == Treatment::Interpret || treatment == Treatment::Rdtsc)
            return false;
        if (in.type == InstructionClass::X87 || in.type == InstructionClass::Mmx)
            return below(8) == 0 && in.op != Op::Fldcw;
        if (in.type != InstructionClass::Alu && in.op == Op::Ldmxcsr)
            return false;
        switch (treatment) {
        case Treatment::RepString: return paging_;
        case Treatment::Syscall:
        case Treatment::Sysret:
        case Treatment::Jump:
        case Treatment::Call:
        case Treatment::IndirectJump:
        case Treatment::IndirectCall:
        case Treatment::Return:
        case Treatment::CounterBranch: return false;
        default: break;
        }
        if (treatment == Treatment::Conditional)
            return in.immediate_size == 1;
        if (in.has_memory() && in.memory_segment >= Fs && wide_)
            return false;
        return !in.has_memory() || in.memory_base != kRip || below(20) == 0;
    }
    /// Displacements small, forward jumps short.
    void tame(std::vector<std::uint8_t>& bytes, const Instruction& in) {
        if (in.branch == BranchKind::Conditional)
            bytes[in.immediate_offset()] = 0;
        if (in.has_memory() && in.displacement_size == 4 && below(16) != 0)
            for (unsigned i = 1; i < 4; ++i)
                bytes[in.displacement_offset() + i] = 0;
        if (!wide_ && in.has_memory() && in.displacement_size == 4 &&
            in.memory_base == kNoRegister && below(16) != 0) {
            const auto address = static_cast<std::uint32_t>(kDataAt + below(kDataBytes));
            std::memcpy(&bytes[in.displacement_offset()], &address, 4);
        }
        const bool plain = in.has_memory() && in.has_modrm() && in.modrm_rm() != 4 &&
                           (in.modrm_mod() == 1 || in.modrm_mod() == 2);
        if (gathered_ && plain && below(8) != 0) // rbx or rsi, with REX.B r11 or r14
            bytes[in.modrm_offset] =
                static_cast<std::uint8_t>((in.modrm & 0xf8) | (below(2) == 0 ? 3 : 6));
    }

    std::mt19937_64 random_;
    bool gathered_ = false;
    const bool wide_;
    const bool paging_; // without it no page fault ends a REP of billions of elements
};

std::string hex(std::span<const std::uint8_t> bytes) {
    std::string text;
    for (const auto byte : bytes)
        text += fmt::format("{:02x}", byte);
    return text;
}

struct Case {
    std::uint16_t undefined = 0;      // flags at the end
    std::uint16_t ever_undefined = 0; // at some point, where a fault may end it
    bool early_dirty = false;         // a store may make its page dirty and fault nevertheless
    std::vector<std::uint8_t> code;
    std::array<std::uint64_t, 16> gpr{};
    std::uint64_t rflags = 2;
    Segment fs, gs;
    std::vector<std::uint8_t> data;
    std::array<std::byte, XsaveArea::kBytes> xsave{};
};

Case make_case(Generator& generator, const FeatureSet& features) {
    Case made;
    const auto count = 1 + generator.below(12);
    for (std::uint64_t i = 0; i < count; ++i) {
        const auto bytes = generator.instruction(features);
        Instruction in;
        (void)decode(bytes, code_size(generator.mode()), in);
        if ((in.flags_read & made.undefined) != 0)
            continue;
        if (!in.has(attribute::kFlagsConditional))
            made.undefined = static_cast<std::uint16_t>(made.undefined & ~in.flags_written);
        made.undefined = static_cast<std::uint16_t>(made.undefined | in.flags_undefined);
        made.ever_undefined = static_cast<std::uint16_t>(made.ever_undefined | in.flags_undefined);
        made.early_dirty |= (in.has(attribute::kAligned) && in.writes_memory()) || in.rep();
        made.code.insert(made.code.end(), bytes.begin(), bytes.end());
    }
    made.code.push_back(0xf4);
    for (auto& value : made.gpr)
        value = generator.below(4) == 0 ? generator.next() >> generator.below(64)
                                        : kDataAt + 0x100 + generator.below(kDataBytes - 0x400);
    made.gpr[Rsp] = kDataAt + 0x1000 + generator.below(0x200) * 8;
    made.gpr[Rcx] = generator.below(3) == 0 ? made.gpr[Rcx] : generator.below(64);
    made.fs = {kDataAt + generator.below(0x100), generator.below(2) == 0 ? 0xfffu : ~0u, 0x10,
               0xc093};
    made.gs = {0xffff'ffff - generator.below(0x1000), 0xffff'ffff, 0x10, 0xc093};
    made.rflags = 2 | (generator.next() & 0x8d5);
    made.data.resize(kDataBytes);
    for (auto& byte : made.data)
        byte = static_cast<std::uint8_t>(generator.next());
    const std::uint16_t control = 0x37f;
    const std::uint32_t mxcsr = 0x1f80;
    std::memcpy(made.xsave.data(), &control, 2);
    std::memcpy(made.xsave.data() + 24, &mxcsr, 4);
    for (std::size_t i = 160; i < 416; ++i)
        made.xsave[i] = static_cast<std::byte>(generator.next());
    for (std::size_t i = 576; i < 832; ++i)
        made.xsave[i] = static_cast<std::byte>(generator.next());
    made.xsave[512] = std::byte{7};
    return made;
}

VmExit run(TestMachine& machine, Code code, const Case& test, std::uint64_t at) {
    machine.enter(code);
    if (code != Code::Long64) {
        machine.state().segment[Fs] = test.fs;
        machine.state().segment[Gs] = test.gs;
    }
    machine.write(at, test.code);
    machine.write(kDataAt, test.data);
    machine.state().gpr = test.gpr;
    machine.state().rip = at;
    machine.state().rflags = test.rflags;
    machine.state().xsave.bytes = test.xsave;
    machine.vcpu().state_changed();
    return machine.vcpu().run();
}

std::string difference(TestMachine& a, TestMachine& b, std::uint64_t undefined) {
    const CpuState& x = a.state();
    const CpuState& y = b.state();
    for (unsigned i = 0; i < 16; ++i)
        if (x.gpr[i] != y.gpr[i])
            return fmt::format("gpr {}: {:#x} {:#x}", i, x.gpr[i], y.gpr[i]);
    if (x.rip != y.rip)
        return fmt::format("rip {:#x} {:#x}", x.rip, y.rip);
    if (((x.rflags ^ y.rflags) & ~undefined) != 0)
        return fmt::format("rflags {:#x} {:#x}", x.rflags, y.rflags);
    if (x.cr2 != y.cr2)
        return fmt::format("cr2 {:#x} {:#x}", x.cr2, y.cr2);
    for (std::size_t i = 6; i < 832; ++i) // the parts that both keep
        if (i < 24 || (i >= 160 && i < 416) || i >= 576)
            if (x.xsave.bytes[i] != y.xsave.bytes[i])
                return fmt::format("xsave byte {}", i);
    const auto p = a.data();
    const auto q = b.data();
    for (std::size_t i = 0; i < p.size(); ++i)
        if (p[i] != q[i])
            return fmt::format("memory at {:#x}: {:#x} {:#x}", kDataAt + i,
                               std::to_integer<int>(p[i]), std::to_integer<int>(q[i]));
    return {};
}

std::uint64_t number(const char* variable, std::uint64_t otherwise) {
    const char* const text = std::getenv(variable);
    return text != nullptr ? std::strtoull(text, nullptr, 0) : otherwise;
}

/// `cases` streams of one kind of code.
void compare_engines(Code code, std::uint64_t cases) {
    TestMachine interpreter{TestMachine::Kind::Interpreter};
    TestMachine translator{TestMachine::Kind::Translator};
    const auto model = *description::find_cpu_model("x86-64-v3");
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

/// The entries of the page tables for the data, the last one first: not present, read-only, …
constexpr std::uint64_t kDataEntries = kTablesAt + 0x3000 + (kDataAt >> 21) * 0x1000;
constexpr std::array<std::uint64_t, 4> kDataRights{7, 7, 5, 6};

/// `reversed`: pages that are neighbours in the guest are not in the host.
void protect_data(TestMachine& machine, bool reversed = false) {
    for (std::uint64_t page = 0; page < kDataRights.size(); ++page) {
        const std::uint64_t to = reversed ? kDataRights.size() - 1 - page : page;
        (void)machine.memory().store(memory::Gpa{kDataEntries + page * 8},
                                     kDataAt | to << 12 | kDataRights.at(page));
    }
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
    const FeatureSet features = features_of(*description::find_cpu_model("x86-64-v3"));
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
    const FeatureSet features = features_of(*description::find_cpu_model("x86-64-v3"));
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
    const FeatureSet features = features_of(*description::find_cpu_model("x86-64-v3"));
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
        CHECK(std::holds_alternative<ShutdownExit>(machine.vcpu().run())); // there is no IDT
        CHECK(machine.state().rip == kCodeAt);
    }
}

void compare_counts(Code code, std::uint64_t cases) {
    InstructionMeter theirs;
    InstructionMeter mine;
    TestMachine interpreter{TestMachine::Kind::Interpreter, &theirs};
    TestMachine translator{TestMachine::Kind::Translator, &mine};
    const FeatureSet features = features_of(*description::find_cpu_model("x86-64-v3"));
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
