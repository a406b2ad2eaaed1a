// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One translated unit of guest code, and what is known about its host code.
#include <atomic>
#include <cstdint>
#include <vector>

namespace doppel::cpu::translator {

/// What a block's translation depends on besides the bytes: where they are and in which mode.
struct BlockKey {
    std::uint64_t gpa = 0;         // of the first byte
    std::uint64_t second_page = 0; // gpa of the page that holds the rest, if the block has two
    std::uint32_t mode = 0;        // of the front end
    bool operator==(const BlockKey&) const = default;
};

/// How the guest's flags must arrive at a body; see the front end.
enum class FlagsWanted : std::uint8_t { Either, InRegister, InSlot };

/// A place where translated code may stop by a host signal.
struct SignalSite {
    std::uint32_t host_offset = 0; // from Block::begin
    std::uint16_t page_offset = 0; // of the guest instruction
    bool flags_in_slot = false;
    bool flags_made = false;
    bool is_poll = false;  // not a fault: somebody wants the vCPU's attention
    std::uint8_t left = 0; // counted instructions of the block that have not been executed
};

struct Block;

/// A patchable direct jump: rel32 at `place` leads to `target`, or to `unlinked` (which asks).
struct Link {
    std::uint8_t* place = nullptr;
    const std::uint8_t* unlinked = nullptr;
    Link* next = nullptr; // of the links into the same block
};

struct Block {
    BlockKey key;
    const std::uint8_t* begin = nullptr; // executable addresses
    const std::uint8_t* end = nullptr;
    const std::uint8_t* body_end = nullptr; // what is behind is out of the way
    // Entries. far: r13 = guest RIP, flags in the slot, polls. The others are for jumps within the
    // page: with flags in the slot or in the register, polling or not.
    std::uint8_t* far_entry = nullptr;
    const std::uint8_t* slot_poll_entry = nullptr;
    const std::uint8_t* slot_entry = nullptr;
    const std::uint8_t* native_poll_entry = nullptr;
    const std::uint8_t* native_entry = nullptr;
    // Or with flags in neither, which the block does not want, and which somebody can compute as
    // long as the registers `made_writes` are not among the operands. May be null.
    const std::uint8_t* made_poll_entry = nullptr;
    const std::uint8_t* made_entry = nullptr;
    std::uint16_t made_writes = 0;
    FlagsWanted flags_wanted = FlagsWanted::Either;
    bool dead = false;
    std::uint32_t table_slot = 0;
    std::uint16_t guest_bytes = 0;
    std::uint16_t instructions = 0; // those that its host code executes itself
    Link* incoming = nullptr;
    Block* next_in_page = nullptr;
    Block* next_in_second_page = nullptr;
    std::vector<SignalSite> signal_sites; // ascending host_offset
};

} // namespace doppel::cpu::translator
