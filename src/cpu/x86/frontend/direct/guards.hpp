// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Where few breakpoints keep many instructions from being executed.
///
/// A process has four breakpoints, and a page of a program's start may hold twenty CPUIDs beside
/// hot code. But who comes to one has come into its function at the beginning: one breakpoint there
/// does, until it is hit; from then until that function has returned (guarded_calls.hpp) there is
/// one for each, or the page is the translator's.
///
/// A function is told from code by reading it: it begins behind what does not go on (RET, JMP, a
/// call and padding), where no jump leads, or where a call leads. Whatever may begin nearest before
/// an instruction guards it, if nothing else that is known to begin leads there without passing
/// that, and no jump through a table may. What such a jump's table names is no function's
/// beginning. What jumps into the midst of a function from afar is not seen; so who runs on from
/// there, or will return there, is looked for (docs/decisions/017).
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace doppel::cpu::x86::frontend {

/// A breakpoint. Offsets in a page.
struct Guard {
    std::uint16_t place;
    std::uint16_t end; // of the function that begins there; 0: it is the instruction itself
    std::size_t first; // what it stands for, of the secretive instructions …
    std::size_t count; // … so many
    bool is_function;  // surely, not a label: at its beginning rsp points to where it returns
    bool is_entry() const { return end != 0; }
    bool is_within(std::uint64_t offset) const { return offset >= place && offset < end; }
};

/// False: something of what is there is not to be had.
using ReadMemory = std::function<bool(std::uint64_t linear, std::span<std::uint8_t> bytes)>;

/// In ascending order. For each of these `secretive` instructions (offsets, ascending) in the page
/// of 64-bit code that is at `page` in `code`, of which the pages before and behind it should be
/// known. `code` is at `linear`, tables are read with `read`, if it is not empty.
std::vector<Guard> guards_of(std::span<const std::uint8_t> code, std::size_t page,
                             std::span<const std::uint16_t> secretive, std::uint64_t linear = 0,
                             const ReadMemory& read = {});

} // namespace doppel::cpu::x86::frontend
