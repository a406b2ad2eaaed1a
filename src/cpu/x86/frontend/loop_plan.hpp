// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What is known of a loop whose checks of the soft TLB are done before it (docs/decisions/012).
#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/translator/emit/assembler.hpp"
#include "cpu/x86/decoder/instruction.hpp"

namespace doppel::cpu::x86::frontend {

using translator::HostReg;

/// Accesses at known distances from `base + index * scale`, as these registers are at the
/// beginning of a turn. They lie in one page for so many turns as are counted beforehand.
struct LoopGroup {
    std::uint8_t base = kNoRegister, index = kNoRegister; // base may be kRip: the block's page
    std::uint8_t scale = 1;
    std::uint8_t segment = 0;
    bool writes = false;
    bool base_stays = true, index_stays = true; // the register is the same in all turns
    std::int32_t low = 0, high = 0;             // [low, high) of the first turn
    std::int32_t step = 0;                      // bytes that a turn adds
    std::uint8_t accesses = 0;
    HostReg host = translator::kNoReg; // holds in all turns what makes a host address; or the frame
};

/// An access of such a group: at `displacement` from those registers that do not stay, whatever
/// they are when the instruction executes.
struct LoopAccess {
    static constexpr std::uint8_t kNone = 0xff;
    std::uint8_t group = kNone;
    std::int32_t displacement = 0;
};

struct LoopPlan {
    static constexpr std::size_t kMaxGroups = 16;
    bool active = false;
    std::array<LoopGroup, kMaxGroups> groups{};
    std::size_t group_count = 0;
    /// This register grows by `step` in each turn: it tells when the turns are over.
    std::uint8_t counter = kNoRegister;
    std::int32_t step = 0;
    /// Nothing can see the flags that a turn begins with. Otherwise only a host signal can.
    bool flags_unseen = false;
};

} // namespace doppel::cpu::x86::frontend
