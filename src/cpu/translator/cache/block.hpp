// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One translated unit of guest code, and what is known about its host code.
#include <cstdint>
#include <span>

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

/// What the front end has made of a piece of guest code.
struct NewBlock {
    BlockKey key;
    const std::uint8_t* begin = nullptr; // executable addresses
    const std::uint8_t* end = nullptr;
    const std::uint8_t* body_end = nullptr; // what is behind is out of the way
    std::uint8_t* cold_begin = nullptr;     // … or here, if the cache has another place for it
    const std::uint8_t* cold_end = nullptr;
    // What is executed unless something unusual happens: from where an entry that has nothing to
    // bring into place leads, without an exit at the end; and the guest's bytes that it stands for.
    const std::uint8_t* hot_begin = nullptr;
    const std::uint8_t* hot_end = nullptr;
    std::uint16_t hot_guest_bytes = 0;
    // Entries. far: r13 = guest RIP, flags in the slot, polls. The others are for jumps within the
    // page: with flags in the slot or in the register, polling or not.
    const std::uint8_t* far_entry = nullptr;
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
    bool loop = false;        // runs turns without checks
    std::uint16_t checks = 0; // see Block
    bool landing = false;     // has used CodeCache::next_landing()
    std::uint16_t guest_bytes = 0;
    std::uint16_t instructions = 0;           // those that its host code executes itself
    std::span<const SignalSite> signal_sites; // ascending host_offset; its maker's
};

/// A patchable direct jump: rel32 at `place` leads to its target, or to `unlinked` (which asks).
/// Places are offsets in code memory.
struct Link {
    std::uint32_t place = 0;
    std::uint32_t unlinked = 0;
    std::uint32_t next = 0; // of the links into the same block; kNone
};

/// A translation in the cache. There are some fifty thousand after a Linux boot, hence numbers in
/// place of pointers: of links, of blocks and of signal sites, in the cache's pools.
struct Block {
    static constexpr std::uint32_t kNone = ~std::uint32_t{0};

    BlockKey key;
    const std::uint8_t* begin = nullptr; // executable address
    const std::uint8_t* cold_begin = nullptr;
    std::uint32_t host_bytes = 0;
    std::uint32_t cold_bytes = 0; // elsewhere, 0 if all is at `begin`
    std::uint32_t first_signal = 0;
    std::uint32_t table_slot = 0;
    std::uint32_t incoming = kNone;
    std::uint32_t next_in_page = kNone;
    std::uint32_t next_in_second_page = kNone;
    std::uint16_t signals = 0;
    std::uint16_t checks = 0; // records of the front end's at the very end of its code
    std::uint16_t guest_bytes = 0;
    std::uint16_t instructions = 0;
    std::uint16_t made_writes = 0;
    std::uint16_t far_offset = 0; // of the entries, from `begin`; see NewBlock
    std::uint16_t slot_poll_offset = 0;
    std::uint16_t slot_offset = 0;
    std::uint16_t native_poll_offset = 0;
    std::uint16_t native_offset = 0;
    std::uint16_t made_poll_offset = 0;
    std::uint16_t made_offset = 0; // 0: there is none
    FlagsWanted flags_wanted = FlagsWanted::Either;
    bool dead = false;
    bool loop = false;

    const std::uint8_t* end() const { return begin + host_bytes; }
    /// Of all of it.
    const std::uint8_t* code_end() const { return cold_bytes != 0 ? cold_end() : end(); }
    const std::uint8_t* cold_end() const { return cold_begin + cold_bytes; }
    const std::uint8_t* far_entry() const { return begin + far_offset; }
    const std::uint8_t* slot_poll_entry() const { return begin + slot_poll_offset; }
    const std::uint8_t* slot_entry() const { return begin + slot_offset; }
    const std::uint8_t* native_poll_entry() const { return begin + native_poll_offset; }
    const std::uint8_t* native_entry() const { return begin + native_offset; }
    const std::uint8_t* made_poll_entry() const { return begin + made_poll_offset; }
    const std::uint8_t* made_entry() const { return begin + made_offset; }
    bool has_made_entry() const { return made_offset != 0; }
};

} // namespace doppel::cpu::translator
