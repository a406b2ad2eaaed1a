// SPDX-License-Identifier: Apache-2.0
/// What the common guest instructions become, as text to be read: golden.txt. A change of code
/// generation shows there, in review. `DOPPEL_GOLDEN=write` writes the file anew.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <fmt/core.h>

#include "cpu/x86/decoder/decoder.hpp"
#include "cpu/x86/disassembler/disassembler.hpp"
#include "cpu/x86/frontend/block_translator.hpp"
#include "cpu/x86/frontend/loop_scan.hpp"
#include "cpu/x86/system/system.hpp"
#include "description/cpu_model.hpp"

namespace doppel::cpu::x86::frontend {
namespace {

struct Golden {
    const char* what;
    std::vector<std::uint8_t> code;
    std::uint32_t mode = mode::kUser;
    enum class As { Inline, Loop, Compact } as = As::Inline;
};

constexpr std::uint16_t kAt = 0x100; // in the page
constexpr std::uint64_t kHostAt = 0x10000;
constexpr std::uint64_t kKernelPage = 0xffff'ffff'8123'4000;
constexpr std::uint32_t kKernel = mode::fixed(kKernelPage);

const std::vector<Golden> kGoldens{
    {"registers only", {0x01, 0xd8}},
    {"a load through a register", {0x48, 0x8b, 0x03}},
    {"a load with a displacement", {0x48, 0x8b, 0x43, 0x08}},
    {"a load with an index", {0x8b, 0x04, 0x8b}},
    {"a load relative to rip", {0x8b, 0x05, 0x00, 0x01, 0x00, 0x00}},
    {"a load through FS", {0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0x00, 0x00, 0x00}},
    {"a load into a register without a home", {0x4c, 0x8b, 0x6b, 0x08}},
    {"a load through a register without a home", {0x49, 0x8b, 0x45, 0x08}},
    {"a store", {0x48, 0x89, 0x43, 0x08}},
    {"a byte", {0x88, 0x03}},
    {"ah", {0x88, 0x63, 0x08}},
    {"read, change, write", {0x48, 0x01, 0x43, 0x08}},
    {"a locked one", {0xf0, 0x48, 0x0f, 0xc1, 0x03}},
    {"carry in", {0x48, 0x13, 0x43, 0x08}},
    {"a register without a home as operand", {0x4d, 0x01, 0xf5}},
    {"two results without a home, from memory", {0xc4, 0x62, 0x9b, 0xf6, 0x2b}}, // mulx
    {"one that is read once", {0x44, 0x01, 0xf0}},
    {"one that is used several times",
     {0x41, 0x89, 0xce, 0x41, 0xc1, 0xce, 0x0b, 0x44, 0x31, 0xf0}},
    {"likewise, then a load",
     {0x41, 0x89, 0xce, 0x41, 0x01, 0xc6, 0x48, 0x8b, 0x13, 0x44, 0x01, 0xf0}},
    {"likewise, then a branch", {0x41, 0xff, 0xc6, 0x44, 0x39, 0xf0, 0x74, 0x10, 0x90}},
    {"one that is used so often that r11 lends it its home",
     {0x41, 0x89, 0xc4, 0x41, 0xc1, 0xcc, 0x0b, 0x44, 0x31, 0xe0, 0x41, 0xc1,
      0xcc, 0x05, 0x41, 0x01, 0xd4, 0x44, 0x31, 0xe2, 0x44, 0x03, 0x23, 0x41,
      0x01, 0xcc, 0x44, 0x01, 0xe1, 0x41, 0xc1, 0xec, 0x03, 0x44, 0x31, 0xe1}},
    {"a vector", {0x0f, 0x28, 0x43, 0x10}},
    {"AVX", {0xc5, 0xfc, 0x10, 0x43, 0x20}},
    {"several accesses through one register",
     {0x48, 0x8b, 0x43, 0x08, 0x48, 0x03, 0x43, 0x10, 0x48, 0x89, 0x43, 0x18}},
    {"the register grows between them",
     {0x8a, 0x03, 0x48, 0xff, 0xc3, 0x8a, 0x0b, 0x48, 0x83, 0xc3, 0x02, 0x8a, 0x13}},
    {"flags of a compare, then a load, then who wants them",
     {0x48, 0x39, 0xc8, 0x48, 0x8b, 0x13, 0x0f, 0x94, 0xc1}},
    {"flags of a subtraction, then a load, then who wants them",
     {0x48, 0x29, 0xc8, 0x48, 0x8b, 0x13, 0x0f, 0x94, 0xc2}},
    {"flags of a logic instruction, then a load, then who wants them",
     {0x48, 0x33, 0x03, 0x48, 0x8b, 0x53, 0x40, 0x0f, 0x94, 0xc1}},
    {"likewise, the result has no home", {0x41, 0x31, 0xc6, 0x48, 0x8b, 0x13, 0x0f, 0x94, 0xc1}},
    {"flags of a shift, then a load, then who wants them",
     {0x48, 0xc1, 0xe0, 0x03, 0x48, 0x8b, 0x13, 0x0f, 0x94, 0xc1}},
    {"flags of a compare with memory, a branch, a load, then other flags",
     {0x48, 0x39, 0x0b, 0x74, 0x10, 0x48, 0x8b, 0x16, 0x48, 0x83, 0xc2, 0x01}},
    {"flags of a sum that is read from, then other flags",
     {0x48, 0x01, 0xc8, 0x48, 0x8b, 0x40, 0x08, 0x48, 0x8b, 0x10, 0x48, 0x01, 0xc2}},
    {"flags of a shift, then a load, then other flags",
     {0x48, 0xc1, 0xe0, 0x03, 0x48, 0x8b, 0x13, 0x48, 0x01, 0xc2}},
    {"push and pop", {0x50, 0x5b}},
    {"push of a register without a home", {0x41, 0x55}},
    {"the beginning of a function",
     {0x55, 0x53, 0x48, 0x89, 0xfb, 0x48, 0x83, 0xec, 0x08, 0x48, 0x83, 0xff, 0x01, 0x76, 0x20,
      0x90}},
    {"its end", {0x48, 0x83, 0xc4, 0x08, 0x48, 0x89, 0xd8, 0x5b, 0x5d, 0xc3}},
    {"an access near rsp", {0x48, 0x8b, 0x44, 0x24, 0x10}},
    {"likewise, and a register without a home", {0x44, 0x03, 0x74, 0x24, 0x10}},
    {"leave", {0xc9}},
    {"lea", {0x4a, 0x8d, 0x44, 0x2b, 0x10}},
    {"a conditional branch", {0x39, 0xc8, 0x74, 0x10, 0x90}},
    {"a conditional branch to another page", {0x39, 0xc8, 0x0f, 0x84, 0x00, 0x20, 0x00, 0x00}},
    {"a call", {0xe8, 0x10, 0x00, 0x00, 0x00}},
    {"a call to another page", {0xe8, 0x00, 0x20, 0x00, 0x00}},
    {"an indirect jump", {0xff, 0xe0}},
    {"an indirect call through memory", {0xff, 0x13}},
    {"return", {0xc3}},
    {"loop", {0xe2, 0x10}},
    {"rep movsb", {0xf3, 0xa4}},
    {"rep stosq", {0xf3, 0x48, 0xab}},
    {"movsb", {0xa4}},
    {"rdtsc", {0x0f, 0x31}, mode::kUser | mode::kTsc},
    {"syscall", {0x0f, 0x05}},
    {"x87", {0xd8, 0xc1}, mode::kUser | mode::kX87},
    {"32-bit code: a load", {0x8b, 0x43, 0x08}, mode::kUser | mode::kCode32},
    {"32-bit code: a load with an index", {0x8b, 0x04, 0x8b}, mode::kUser | mode::kCode32},
    {"32-bit code: push", {0x50}, mode::kUser | mode::kCode32},
    {"kernel: swapgs", {0x0f, 0x01, 0xf8}, 0},
    {"kernel: stac", {0x0f, 0x01, 0xcb}, 0},
    {"kernel: cli, sti", {0xfa, 0xfb}, 0},
    {"kernel: per-CPU data", {0x65, 0x48, 0x8b, 0x05, 0x00, 0x01, 0x00, 0x00}, 0},
    {"kernel that knows where it is: a load relative to rip",
     {0x48, 0x8b, 0x05, 0x00, 0x01, 0x00, 0x00},
     kKernel},
    {"likewise: a register without a home is added",
     {0x4c, 0x01, 0x2d, 0x00, 0x01, 0x00, 0x00},
     kKernel},
    {"likewise: lea", {0x48, 0x8d, 0x05, 0x00, 0x01, 0x00, 0x00}, kKernel},
    {"likewise: a call to another page", {0xe8, 0x00, 0x20, 0x00, 0x00}, kKernel},
    {"a hot loop: a sum",
     {0x48, 0x03, 0x10, 0x48, 0x83, 0xc0, 0x08, 0x48, 0x39, 0xc8, 0x75, 0xf4},
     mode::kUser,
     Golden::As::Loop},
    {"a hot loop whose loads may raise exceptions",
     {0xf3, 0x0f, 0x10, 0x02, 0xf3, 0x0f, 0x59, 0x04, 0x9f, 0x48, 0x83,
      0xc2, 0x04, 0xf3, 0x0f, 0x58, 0xc8, 0x48, 0x39, 0xf2, 0x75, 0xea},
     mode::kUser,
     Golden::As::Loop},
    {"compact: a load through a register", {0x48, 0x8b, 0x03}, mode::kUser, Golden::As::Compact},
    {"compact: a store with an index", {0x89, 0x44, 0x8b, 0x08}, mode::kUser, Golden::As::Compact},
    {"compact: a load into a register without a home",
     {0x4c, 0x8b, 0x6b, 0x08},
     mode::kUser,
     Golden::As::Compact},
    {"compact: several accesses through one register",
     {0x48, 0x8b, 0x43, 0x08, 0x48, 0x03, 0x43, 0x10, 0x48, 0x89, 0x43, 0x18},
     mode::kUser,
     Golden::As::Compact},
    {"compact: push and pop", {0x50, 0x5b}, mode::kUser, Golden::As::Compact},
    {"compact: a call to another page",
     {0xe8, 0x00, 0x20, 0x00, 0x00},
     mode::kUser,
     Golden::As::Compact},
    {"compact: return", {0xc3}, mode::kUser, Golden::As::Compact},
    {"compact: a locked one", {0xf0, 0x48, 0x0f, 0xc1, 0x03}, mode::kUser, Golden::As::Compact},
    {"compact: kernel that knows where it is, a load relative to rip",
     {0x48, 0x8b, 0x05, 0x00, 0x01, 0x00, 0x00},
     kKernel,
     Golden::As::Compact},
};

CodeSize size_of(const Golden& golden) {
    return (golden.mode & mode::kCode32) != 0 ? CodeSize::Bits32 : CodeSize::Bits64;
}

std::string guest_text(const Golden& golden) {
    std::string text;
    std::size_t at = 0;
    while (at < golden.code.size()) {
        std::vector<std::uint8_t> rest{golden.code.begin() + static_cast<std::ptrdiff_t>(at),
                                       golden.code.end()};
        Instruction in;
        REQUIRE(decode(rest, size_of(golden), in) == DecodeStatus::Ok);
        text += fmt::format("  {}\n", disassemble(rest, size_of(golden), kAt + at));
        at += in.length;
    }
    return text;
}

/// Of what compact code calls.
std::string shared_name(const SharedChecks& shared, const std::uint8_t* called) {
    constexpr std::uint32_t kSizes[] = {1, 2, 4, 8, 16, 24, 32, 64};
    constexpr const char* kGives[] = {"addend", "page", "host address"};
    for (const std::uint32_t bytes : kSizes) {
        if (shared.stack_check(bytes) == called)
            return fmt::format("(stack check, {} bytes)", bytes);
        for (const bool write : {false, true})
            for (const CheckGives gives :
                 {CheckGives::Addend, CheckGives::PageHost, CheckGives::HostAddress})
                if (shared.check(write, gives, bytes) == called)
                    return fmt::format("(check, {}, {} bytes, gives the {})",
                                       write ? "write" : "read", bytes,
                                       kGives[static_cast<std::size_t>(gives)]);
    }
    return "";
}

class NoBlocks final : public BlockFinder {
public:
    bool exists(std::uint16_t) const override { return false; }
};

/// The body, from the entry for flags in the register on; what is out of the way begins where the
/// body ends. Branch targets: from the start of the block.
std::string host_text(const Golden& golden) {
    // The guest code goes on with HLT, which ends the block in an exit of its own.
    std::vector<std::uint8_t> guest{golden.code};
    guest.resize(64, 0xf4);
    static BlockScan scan;
    const FeatureSet features = features_of(*description::find_cpu_model("x86-64-v3"));
    const CodeBytes bytes_of{reinterpret_cast<const std::byte*>(guest.data()), 64, nullptr};
    const std::uint32_t bits = golden.mode | mode::kSse | mode::kAvx;
    if (golden.as == Golden::As::Loop)
        REQUIRE(scan_loop(scan, bytes_of, kAt, bits, features, {}, NoBlocks{}));
    else
        scan_block(scan, bytes_of, kAt, bits, features, {});
    static std::array<std::uint8_t, 65536> memory;
    auto* const exec = reinterpret_cast<std::uint8_t*>(kHostAt);
    translator::Assembler assembler{memory.data(), exec, memory.size()};
    const Stubs stubs = emit_stubs(assembler);
    assembler.align(64);
    scan.compact = golden.as == Golden::As::Compact;
    scan.page_va = (golden.mode & mode::kFixed) != 0 ? kKernelPage : 0;
    translator::NewBlock block;
    BlockTranslator::Workspace space;
    BlockTranslator{assembler, stubs, scan, space}.translate(block);
    // Entered with flags in the register, a body that wants them in the slot saves them first.
    const bool saves = block.flags_wanted == translator::FlagsWanted::InSlot;
    std::string text = saves ? "    (flags saved)\n" : "";
    const std::uint8_t* at = block.hot_begin;
    while (at < block.hot_end) {
        const std::size_t offset = static_cast<std::size_t>(at - exec);
        const std::size_t left = static_cast<std::size_t>(block.hot_end - at);
        Instruction in;
        const std::span<const std::uint8_t> bytes{memory.data() + offset, left};
        REQUIRE(decode(bytes, CodeSize::Bits64, in) == DecodeStatus::Ok);
        const std::string line =
            disassemble(bytes, CodeSize::Bits64, static_cast<std::uint64_t>(at - block.begin));
        const bool calls = in.op == Op::Call && in.operands[0].kind == OperandKind::Relative;
        const std::string name =
            calls ? shared_name(stubs.shared,
                                at + in.length + static_cast<std::int64_t>(in.immediate))
                  : "";
        text += fmt::format("    {}\n", name.empty() ? line : "call " + name);
        at += in.length;
    }
    return text + (block.hot_end != block.body_end ? "    (exit)\n" : "");
}

std::string all() {
    std::string text =
        "# SPDX-License-Identifier: Apache-2.0\n"
        "What guest instructions become: the body of a block, entered with flags in\n"
        "the register, up to the exit at HLT. Made by golden_test.cpp.\n";
    for (const Golden& golden : kGoldens)
        text += fmt::format("\n{}:\n{}{}", golden.what, guest_text(golden), host_text(golden));
    return text;
}

TEST_CASE("the code that is made is the code that was reviewed") {
    const std::string text = all();
    const char* const wish = std::getenv("DOPPEL_GOLDEN");
    if (wish != nullptr && std::string{wish} == "write") {
        std::ofstream{DOPPEL_GOLDEN_FILE} << text;
        return;
    }
    std::ifstream file{DOPPEL_GOLDEN_FILE};
    const std::string reviewed{std::istreambuf_iterator<char>{file}, {}};
    REQUIRE_FALSE(reviewed.empty());
    const auto [mine, theirs] = std::ranges::mismatch(text, reviewed);
    const auto line = std::count(text.begin(), mine, '\n') + 1;
    INFO("golden.txt, line ", line, "; if the change is meant: DOPPEL_GOLDEN=write ", "and review");
    CHECK(text == reviewed);
}

} // namespace
} // namespace doppel::cpu::x86::frontend
