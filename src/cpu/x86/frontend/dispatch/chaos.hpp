// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Disturbances that correct translated code cannot notice: links that are refused or put back,
/// branch targets that are not cached, emptied TLBs, dropped code, safepoints, polls for nothing.
///
/// A test runs with them to find what relies on a link, an entry or a block being there. They
/// happen between two blocks, where all of that may change anyway. Storms, in which nearly every
/// block is disturbed, and calms, in which long chains of linked blocks arise, take turns. Which,
/// and when, follows from the seed and from what the guest executes: in virtual time a run can be
/// repeated.
#include <cstdint>

namespace doppel::cpu::x86::frontend {

/// One vCPU's. vCPU thread only; general registers only.
class Chaos {
public:
    enum class Act : std::uint8_t {
        None,
        FlushTlb,
        FlushNonGlobal,
        DropWrites,
        DropBranches,
        Poll,
        Events, // looks for events that nobody has announced
        Unlink, // a block
        Evict,  // the blocks of a page
        EvictArena,
        Safepoint, // of all vCPUs
    };

    void seed(std::uint64_t seed, unsigned vcpu) {
        state_ = seed == 0 ? 0 : (seed + vcpu) * 0x9e37'79b9'7f4a'7c15ull | 1;
    }
    bool enabled() const { return state_ != 0; }
    std::uint64_t next() { // xorshift64
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return state_;
    }
    /// What happens before the next block.
    Act act() {
        if (blocks_left_-- == 0) {
            storm_ = !storm_;
            blocks_left_ = next() >> 20 & (storm_ ? 255 : 4095);
        }
        if (!storm_)
            return Act::None;
        const std::uint64_t number = next() >> 20;
        if ((number & 4095) == 0)
            return Act::EvictArena;
        if ((number & 255) < 4)
            return Act::Safepoint;
        constexpr Act kOften[] = {
            Act::FlushTlb, Act::FlushNonGlobal, Act::DropWrites, Act::DropBranches,
            Act::Poll,     Act::Poll,           Act::Poll,       Act::Events,
            Act::Unlink,   Act::Unlink,         Act::Unlink,     Act::Evict,
            Act::None,     Act::None,           Act::None,       Act::None};
        return kOften[number >> 12 & 15];
    }
    /// In a storm mostly not, or code would come back too rarely.
    bool may_link() { return !storm_ || (next() >> 20 & 7) == 0; }
    /// Leaves translated code for the dispatcher's loop, though it could go on.
    bool goes_around() { return storm_ && (next() >> 20 & 3) == 0; }
    /// At least the longest block, so that it gets on.
    std::uint64_t budget(std::uint64_t granted) {
        if (!storm_)
            return granted;
        const std::uint64_t most = 64 + (next() >> 20 & 255);
        return granted < most ? granted : most;
    }

private:
    std::uint64_t state_ = 0;
    std::uint64_t blocks_left_ = 0; // of this storm or calm
    bool storm_ = false;
};

} // namespace doppel::cpu::x86::frontend
