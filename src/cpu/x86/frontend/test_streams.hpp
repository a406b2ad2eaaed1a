// SPDX-License-Identifier: Apache-2.0
#pragma once
/// For tests that give both engines the same streams of instructions and compare what they do.
#include <array>
#include <cstdlib>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <fmt/core.h>

#include "cpu/x86/decoder/decoder.hpp"
#include "cpu/x86/frontend/classify.hpp"
#include "cpu/x86/frontend/frame.hpp"
#include "cpu/x86/frontend/test_machine.hpp"
#include "cpu/x86/system/system.hpp"

namespace doppel::cpu::x86::frontend {

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
            std::vector<std::uint8_t> bytes(15);
            for (auto& byte : bytes)
                byte = static_cast<std::uint8_t>(random_());
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

inline std::string hex(std::span<const std::uint8_t> bytes) {
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

inline Case make_case(Generator& generator, const FeatureSet& features) {
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

inline VmExit run(TestMachine& machine, Code code, const Case& test, std::uint64_t at) {
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

inline std::string difference(TestMachine& a, TestMachine& b, std::uint64_t undefined) {
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

inline std::uint64_t number(const char* variable, std::uint64_t otherwise) {
    const char* const text = std::getenv(variable);
    return text != nullptr ? std::strtoull(text, nullptr, 0) : otherwise;
}

/// The entries of the page tables for the data, the last one first: not present, read-only, …
inline constexpr std::uint64_t kDataEntries = kTablesAt + 0x3000 + (kDataAt >> 21) * 0x1000;
inline constexpr std::array<std::uint64_t, 4> kDataRights{7, 7, 5, 6};

/// `reversed`: pages that are neighbours in the guest are not in the host.
inline void protect_data(TestMachine& machine, bool reversed = false) {
    for (std::uint64_t page = 0; page < kDataRights.size(); ++page) {
        const std::uint64_t to = reversed ? kDataRights.size() - 1 - page : page;
        (void)machine.memory().store(memory::Gpa{kDataEntries + page * 8},
                                     kDataAt | to << 12 | kDataRights.at(page));
    }
}

} // namespace doppel::cpu::x86::frontend
