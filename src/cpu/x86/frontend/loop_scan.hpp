// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Finds out whether a block is the head of a loop that can run without checks: follows one turn of
/// it and keeps account of what each register is, in terms of what the registers were when the turn
/// began. Small loops of a constant number of turns inside it are unrolled on the way.
#include "cpu/x86/frontend/block_scan.hpp"

namespace doppel::cpu::x86::frontend {

/// Tells whether code at an offset in the page has ever been executed as a block.
class BlockFinder {
public:
    virtual bool exists(std::uint16_t page_offset) const = 0;

protected:
    ~BlockFinder() = default;
};

/// False: it is not such a loop, `out` is void. Otherwise `out` is one turn, LoopPlan included.
bool scan_loop(BlockScan& out, const CodeBytes& code, std::uint16_t page_offset, std::uint32_t mode,
               const FeatureSet& features, const description::Tuning& tuning,
               const BlockFinder& blocks);

} // namespace doppel::cpu::x86::frontend
