// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Which instructions in a page of code must not be executed on the host's CPU itself.
///
/// Most of what a user must not do raises an exception. Some instructions only tell what the host
/// is, where the guest's answer is another: CPUID, XGETBV, SGDT and its like, RDPID, LSL (Linux
/// keeps the CPU's number in a segment's limit), XSAVE (its layout), RDPKRU; or reach somebody
/// else: SYSENTER, VMCALL, XRSTOR of protection keys. INT 3 and 4 are reported behind themselves,
/// INT 80 without half of rax. RDTSC shows the host's counter, or raises an exception where the
/// guest's is another. RDTSCP tells the CPU's number, too; it can be made to raise an exception,
/// not alone but with RDTSC.
///
/// Every tenth page holds the bytes of one in the midst of others. Whether an instruction begins
/// there is told by reading the code before it: from wherever one begins to read, one soon reads
/// what the CPU does. To take an operand for an opcode does no harm, as it is never executed. So a
/// program that means to may hide one behind bytes that are not executed either; it learns what any
/// process of the host's may know.
#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace doppel::cpu::x86::frontend {

/// A page of 64-bit code with its surroundings.
struct PageBytes {
    static constexpr std::size_t kPage = 4096, kBefore = 96, kBehind = 2;
    std::array<std::uint8_t, kBefore + kPage + kBehind> bytes{};
    std::size_t first = kBefore;                 // what is known, from here …
    std::size_t end = kBefore + kPage + kBehind; // … to here
};

/// Whether the instruction that begins there is one, or may be if `code` ends too soon.
bool is_secretive(std::span<const std::uint8_t> code);
/// Where such instructions may begin: offsets in the page, ascending.
std::vector<std::uint16_t> secretive_instructions(const PageBytes& code);
/// Whether RDTSCP may be among the instructions of the page.
bool has_rdtscp(const PageBytes& code);

/// Offsets in the page of code at which instructions surely begin, as they do at `executed`: behind
/// one another, and where relative branches lead. Not behind calls, which may not return.
struct Reached {
    std::bitset<PageBytes::kPage> begins;
    std::vector<std::int64_t> outside; // where they branch to in other pages: offsets, too
};
Reached reached_instructions(std::span<const std::uint8_t> page,
                             std::vector<std::uint16_t> executed);

} // namespace doppel::cpu::x86::frontend
