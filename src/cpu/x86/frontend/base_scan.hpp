// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Finds the accesses of a block that one check of the soft TLB can serve: those through the same
/// registers, whose distance from each other is known and small. What a stack group is for rsp, a
/// base group is for any other base and index; its host address waits in the frame.
#include <span>

#include "cpu/x86/frontend/block_scan.hpp"

namespace doppel::cpu::x86::frontend {

class BaseScan {
public:
    explicit BaseScan(BlockScan& scan) : scan_{scan}, word_{word_bytes(scan.mode)} {}
    /// The instructions of the block, in their order.
    void visit(ScannedInstruction& at);
    /// Dissolves groups of one.
    void finish();

private:
    /// A group that may still grow. Without initial values: there is room for many, and most blocks
    /// have one or two.
    struct Open {
        bool used;
        std::uint8_t group;
        std::uint8_t base, index, scale, segment;
        std::int32_t shift; // what the base register has grown since the group began
        unsigned exits;     // side exits of the block before its first access
    };
    std::span<Open> opened() { return std::span{open_}.first(opened_); }
    Open* find(const Instruction& in);
    bool join(ScannedInstruction& at, Open& open, std::int32_t offset) const;
    void begin(ScannedInstruction& at, Open* in_place_of, std::int32_t offset);
    void registers_change(const ScannedInstruction& at);

    BlockScan& scan_;
    const unsigned word_;
    std::array<Open, BlockScan::kMaxBases> open_;
    std::size_t opened_ = 0; // the first so many have been in use, the others have no value
    unsigned exits_ = 0;
    unsigned registers_ = 0; // a set: some group goes, or went, through them
};

} // namespace doppel::cpu::x86::frontend
