// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/cpu_state_schema.hpp"

#include <doctest/doctest.h>

#include <cstring>
#include <functional>
#include <memory>

using namespace doppel;
using namespace doppel::cpu::x86;

namespace {

/// A plausible state in 64-bit mode with every field different from its default.
CpuState sample() {
    CpuState s;
    for (std::uint64_t i = 0; i < 16; ++i)
        s.gpr[i] = 0x1111'1111'1111'1111ull * i;
    s.rip = 0xffff'ffff'8100'0000;
    s.rflags = 0x246;
    s.cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_NE | CR0_WP;
    s.cr2 = 0xdead'beef;
    s.cr3 = 0x1234'5001;
    s.cr4 = CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_OSXSAVE;
    s.efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
    s.xcr0 = 7;
    for (auto& segment : s.segment)
        segment = {0, 0xffffffff, 0x10, 0xc093};
    s.segment[Cs] = {0, 0xffffffff, 0x10, 0xa09b};
    s.segment[Gs].base = 0xffff'8880'0000'0000;
    s.ldtr = {0xffff'8881'0000'0000, 0xff, 0x50, 0x82};
    s.tr = {0xffff'fe00'0000'3000, 0x4087, 0x40, 0x8b};
    s.gdtr = {0xffff'fe00'0000'1000, 0x7f};
    s.idtr = {0xffff'fe00'0000'0000, 0xfff};
    s.activity = Activity::Halted;
    s.sti_shadow = s.nmi_blocked = true;
    s.dr = {1, 2, 3, 4};
    s.lstar = s.rip;
    s.tsc_offset = ~0ull;
    s.mtrr_fixed.fill(0x0606060606060606);
    s.mc_banks[31] = 5;
    s.pdpte = {1, 2, 3, 4};
    s.pending_debug = 0x4000;
    for (std::size_t i = 0; i < 512; ++i)
        s.xsave.bytes[i] = std::byte(i * 7);
    const std::uint64_t mxcsr = 0x1f80;
    std::memcpy(s.xsave.bytes.data() + 24, &mxcsr, 8);
    s.xsave.bytes[512] = std::byte{7};
    return s;
}

std::vector<std::byte> saved(const CpuState& state) {
    state::Encoder to;
    save_cpu_state(to, state);
    return to.take();
}

} // namespace

TEST_CASE("save, load, save gives the same bytes") {
    const auto first = saved(sample());
    CpuState loaded;
    state::Decoder from{first};
    const auto result = load_cpu_state(from, loaded);
    REQUIRE_MESSAGE(result.has_value(), (result ? std::string{} : result.error().message()));
    CHECK(saved(loaded) == first);
    CHECK(loaded.xsave.bytes == sample().xsave.bytes);
    CHECK(loaded.tr.base == sample().tr.base);
}

TEST_CASE("a hostile state is refused and changes nothing") {
    const std::pair<const char*, std::function<void(CpuState&)>> cases[] = {
        {"rflags reserved", [](CpuState& s) { s.rflags |= 8; }},
        {"rflags without bit 1", [](CpuState& s) { s.rflags &= ~2ull; }},
        {"VM in long mode", [](CpuState& s) { s.rflags |= FLAG_VM; }},
        {"PG without PE", [](CpuState& s) { s.cr0 &= ~CR0_PE; }},
        {"LMA without LME", [](CpuState& s) { s.efer &= ~EFER_LME; }},
        {"long mode without PAE", [](CpuState& s) { s.cr4 &= ~CR4_PAE; }},
        {"LA57", [](CpuState& s) { s.cr4 |= CR4_LA57; }},
        {"cr3 beyond 52 bits", [](CpuState& s) { s.cr3 |= 1ull << 60; }},
        {"xcr0 without x87", [](CpuState& s) { s.xcr0 = 6; }},
        {"xcr0 AVX without SSE", [](CpuState& s) { s.xcr0 = 5; }},
        {"cpl 4", [](CpuState& s) { s.cpl = 4; }},
        {"activity", [](CpuState& s) { s.activity = Activity{9}; }},
        {"gs base", [](CpuState& s) { s.segment[Gs].base = 1ull << 50; }},
        {"lstar", [](CpuState& s) { s.lstar = 1ull << 50; }},
        {"L and D", [](CpuState& s) { s.segment[Cs].access |= Segment::kDefaultBig; }},
        {"pat", [](CpuState& s) { s.pat = 2; }},
        {"mxcsr", [](CpuState& s) { s.xsave.bytes[27] = std::byte{1}; }},
        {"xstate_bv", [](CpuState& s) { s.xsave.bytes[512] = std::byte{8}; }},
        {"xcomp_bv", [](CpuState& s) { s.xsave.bytes[527] = std::byte{0x80}; }},
    };
    for (const auto& [name, damage] : cases) {
        CAPTURE(name);
        CpuState state = sample();
        damage(state);
        const auto bytes = saved(state);
        state::Decoder from{bytes};
        CpuState target;
        target.rip = 42;
        CHECK_FALSE(load_cpu_state(from, target).has_value());
        CHECK(target.rip == 42);
    }
}

TEST_CASE("a truncated state is refused at every length") {
    const auto bytes = saved(sample());
    for (std::size_t length = 0; length < bytes.size(); length += 7) {
        state::Decoder from{std::span{bytes}.first(length)};
        CpuState target;
        CHECK_FALSE(load_cpu_state(from, target).has_value());
    }
}
