// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What translated x86 code lives on: host registers and the frame behind rsp. The register homes
/// are one table (docs/decisions/002), nothing else knows them.
///
///   rax rcx rdx rbx rbp rsi rdi r8-r11   the guest's registers of the same name
///   r12                                  guest rsp
///   r13 r14                              scratch, dead between guest instructions
///   r15                                  TlbInstance + kControl
///   rsp                                  &CpuState; FrameHeader lies below it
///   [rsp + 96..127]                      guest r12-r15, in CpuState::gpr itself
///   flags, vectors, x87                  the guest's (flags: see flag_state.hpp)
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "cpu/translator/emit/assembler.hpp"
#include "cpu/translator/mmu/tlb_instance.hpp"
#include "cpu/x86/cpu_state.hpp"
#include "cpu/x86/decoder/instruction.hpp"

namespace doppel::cpu::x86::frontend {

using translator::HostReg;
using translator::Mem;

/// Home of each guest register; kNoReg = its slot in CpuState::gpr.
inline constexpr std::array<HostReg, 16> kHome = {
    translator::kRax,   translator::kRcx,   translator::kRdx,   translator::kRbx,
    translator::kR12,   translator::kRbp,   translator::kRsi,   translator::kRdi,
    translator::kR8,    translator::kR9,    translator::kR10,   translator::kR11,
    translator::kNoReg, translator::kNoReg, translator::kNoReg, translator::kNoReg};
inline constexpr HostReg kGuestRsp = translator::kR12;
inline constexpr HostReg kScratch0 = translator::kR13;
inline constexpr HostReg kScratch1 = translator::kR14;
inline constexpr HostReg kTlb = translator::kR15;
constexpr bool in_slot(unsigned guest_register) {
    return kHome[guest_register] == translator::kNoReg;
}
inline constexpr std::uint16_t kWithoutHome = 0xf000; // the set of those

/// Directly below CpuState; the last 128 bytes, which displacements of 8 bits reach, are what
/// blocks use. Only `attention` is touched by other threads.
struct FrameHeader {
    static constexpr std::size_t kNearGroups = 8;

    const std::uint8_t* busy_code = nullptr;           // where the count below ended
    std::uint64_t shared_calls_left = 0;               // see SharedChecks
    std::uint64_t shared_calls = 0;                    // what it begins with
    std::uint64_t tsc_offset = 0;                      // guest TSC - host TSC
    std::uint64_t shared_branch_wait = 0;              // see Stubs::shared_branch
    std::uint64_t host_limit = std::uint64_t{1} << 48; // above all host addresses
    std::uint64_t host_rsp = 0;                        // while translated code runs
    std::uint64_t tlb_register = 0;                    // r15
    std::uint64_t resume_r13 = 0, resume_r14 = 0;
    std::uint64_t exit_r13 = 0, exit_r14 = 0;
    std::uint64_t refill_limit = 0;    // of the stack refill
    std::uint64_t shared_branches = 0; // TlbSet::SharedBranch[]
    std::uint64_t resume = 0;          // where to enter
    std::uint64_t loop_turns = 0;      // a loop without checks: turns after the first …

    /// Of the block's base groups: where they begin; of a loop's groups: what makes a host address.
    std::array<std::uint64_t, kNearGroups> group_host{};
    std::uint64_t loop_limit = 0;  // … and its counter when they are over
    std::uint32_t exit_site = 0;   // offset in code memory of the Site of the exit that was taken
    std::uint32_t return_site = 0; // likewise, of a paired return before it
    std::uint64_t spare = 0;       // of one instruction's translation
    std::uint64_t page_va = 0;     // linear address of the page the block in execution started in
    /// The frame's own address, or kAttention: leave at the next poll.
    std::atomic<std::uint64_t> attention{0};
    /// "The slot": lahf in bits 15:8, OF in bit 0. Read as 16 bits everywhere: the host cannot
    /// forward a store to a wider load.
    std::uint16_t flags = 0;
    std::uint16_t behind_flags = 0; // may be written with them
    std::uint32_t flag_maker = 0;   // offset in code memory: see Stubs::made_slot
    std::uint64_t flag_operand = 0; // what the instruction that made the flags worked on
    std::uint64_t call_slot = 0;    // the return address of calls to stubs passes through here

    /// While no stack page is cached, stack_page is one that no guest finds: neither canonical nor
    /// to be guessed. `random` is any number.
    static constexpr std::uint64_t no_stack_page(std::uint64_t random) {
        return 0x4000'0000'0000'0000 | (random >> 3 & ~std::uint64_t{0xfff});
    }
    /// Not an address: a poll that follows it is a SIGSEGV, which is how tight loops notice.
    /// Joined to the frame's address: all there is to see is `busy_code`.
    static constexpr std::uint64_t kAttention = 0x4000'0000'0000'0000;
};
static_assert(sizeof(FrameHeader) == 256 && offsetof(FrameHeader, group_host) == 128);

/// What SYSCALL and SYSRET of 64-bit code load, worked out of IA32_STAR.
struct FastCalls {
    Segment syscall_cs, syscall_ss, sysret_cs, sysret_ss;
    std::uint32_t ready = 0; // EFER.SCE is set and IA32_LSTAR canonical
};

/// Of a REP string instruction in translated code.
struct StringWork {
    std::uint64_t chunk = 0, rest = 0; // elements: now, later
    std::uint64_t to = 0, from = 0;    // addends
};

struct alignas(64) Frame {
    FrameHeader header;
    CpuState state;
    alignas(64) std::array<std::byte, 64> bounce{}; // operand of a load that is not plain RAM
    std::array<std::byte, 4096> nowhere{};          // the host page behind no_stack_page()
    std::uint32_t event_hint = 0;  // the InterruptPort may have something: STI asks
    std::uint64_t budget = 0;      // instructions that counting blocks may still execute
    std::uint64_t pauses_left = 0; // until the next PAUSE that lets other threads run
    FastCalls fast_calls;
    StringWork string;
    std::array<std::uint64_t, 8> far_group_host{}; // those behind FrameHeader::group_host
    /// Of FS and GS in 32-bit code: joined to the linear address of an access. 0, or kNotFlat: the
    /// segment does not reach over all 4 GiB, the interpreter checks its limits.
    std::array<std::uint64_t, 2> segment_guard{};
    static constexpr std::uint64_t kNotFlat = 0x4000'0000'0000'0000;
    const std::uint8_t* shared_back = nullptr; // of SharedChecks
    std::uint64_t flag_scratch = 0;            // of an exit that computes the flags
    /// Where a return leads, by the guest address of its return address, bits 18:3: the landing of
    /// the last call that pushed one there, or Stubs::landing.
    static constexpr std::size_t kLandings = std::size_t{1} << 16;
    std::array<const std::uint8_t*, kLandings> landings{};
};
static_assert(offsetof(Frame, state) == sizeof(FrameHeader));
static_assert(offsetof(CpuState, gpr) == 0);

/// Displacement from rsp.
constexpr std::int32_t header_offset(std::size_t offset) {
    return static_cast<std::int32_t>(offset) - static_cast<std::int32_t>(sizeof(FrameHeader));
}
constexpr Mem at_rsp(std::int32_t displacement) {
    return {translator::kRsp, translator::kNoReg, 1, displacement};
}
#define DOPPEL_FRAME(member)                                                                       \
    ::doppel::cpu::x86::frontend::at_rsp(::doppel::cpu::x86::frontend::header_offset(              \
        offsetof(::doppel::cpu::x86::frontend::FrameHeader, member)))
constexpr Mem slot(unsigned guest_register) {
    return at_rsp(static_cast<std::int32_t>(guest_register * 8));
}
/// A member of CpuState.
constexpr Mem state_at(std::size_t offset) { return at_rsp(static_cast<std::int32_t>(offset)); }
/// A member of Frame.
constexpr Mem frame_at(std::size_t offset) {
    return at_rsp(static_cast<std::int32_t>(offset) -
                  static_cast<std::int32_t>(sizeof(FrameHeader)));
}
constexpr Mem landing_at(HostReg index) {
    Mem place = frame_at(offsetof(Frame, landings));
    place.index = index;
    place.scale = 8;
    return place;
}
constexpr Mem group_host(std::size_t group) {
    const bool near = group < FrameHeader::kNearGroups;
    return near
               ? at_rsp(header_offset(offsetof(FrameHeader, group_host) + group * 8))
               : frame_at(offsetof(Frame, far_group_host) + (group - FrameHeader::kNearGroups) * 8);
}
inline Mem segment_base(unsigned segment) {
    return at_rsp(static_cast<std::int32_t>(offsetof(CpuState, segment) +
                                            segment * sizeof(Segment) + offsetof(Segment, base)));
}
inline Mem segment_selector(unsigned segment) {
    return at_rsp(static_cast<std::int32_t>(
        offsetof(CpuState, segment) + segment * sizeof(Segment) + offsetof(Segment, selector)));
}
#define DOPPEL_TLB(member)                                                                         \
    (static_cast<std::int32_t>(offsetof(::doppel::cpu::translator::TlbInstance, member)) -         \
     static_cast<std::int32_t>(::doppel::cpu::translator::TlbInstance::kControl))

// --- flags: rflags <-> the slot ---
constexpr std::uint16_t pack_flags(std::uint64_t rflags) {
    return static_cast<std::uint16_t>((rflags & 0xd5) << 8 | (rflags >> 11 & 1));
}
constexpr std::uint64_t unpack_flags(std::uint64_t rflags, std::uint16_t slot) {
    return (rflags & ~kArithmeticFlags) | (slot >> 8 & 0xd5u) | (slot & 1u) << 11;
}

// --- mode bits of a block's key ---
namespace mode {
inline constexpr std::uint32_t kUser = 1; // CPL 3
inline constexpr std::uint32_t kX87 = 2;  // x87 and MMX do not fault
inline constexpr std::uint32_t kSse = 4;
inline constexpr std::uint32_t kAvx = 8;
inline constexpr std::uint32_t kTsc = 16;         // RDTSC in line
inline constexpr std::uint32_t kEachChecked = 32; // variant: each access is checked by itself
inline constexpr std::uint32_t kCount = 64;       // virtual time: takes from Frame::budget
inline constexpr std::uint32_t kCode32 = 128;     // flat 32-bit code, see dispatch/flat_code.hpp
inline constexpr std::uint32_t kFixed = 256;      // the block knows its linear address: see fixed()

/// Of a block at `rip` in 64-bit code that is translated for this address alone, whose page is in
/// the bits 31:12 of the mode. 0: an immediate of 32 bits does not reach there. It does in kernels,
/// and in programs that are not position-independent.
constexpr std::uint32_t fixed(std::uint64_t rip) {
    const auto low = static_cast<std::uint32_t>(rip);
    const bool reaches = static_cast<std::uint64_t>(static_cast<std::int32_t>(low)) == rip;
    return reaches ? kFixed | (low & ~std::uint32_t{0xfff}) : 0;
}
} // namespace mode

/// Bytes of an address, of what PUSH and near CALL push.
constexpr std::uint8_t word_bytes(std::uint32_t mode) {
    return (mode & mode::kCode32) != 0 ? 4 : 8;
}
constexpr CodeSize code_size(std::uint32_t mode) {
    return (mode & mode::kCode32) != 0 ? CodeSize::Bits32 : CodeSize::Bits64;
}

/// In 32-bit code ESP wraps at 4 GiB, which host addresses do not. So a page that is accessed by
/// ESP plus a distance, after one check for several accesses, keeps this distance from both ends;
/// it is more than ESP moves between them.
inline constexpr std::int32_t kStackMargin32 = 0x10000;
constexpr bool is_stack_page32(std::uint64_t linear) {
    return linear - kStackMargin32 < 0x1'0000'0000 - 2 * std::uint64_t{kStackMargin32};
}

/// What stands behind an exit, that is a jump to a stub, in translated code: as much of it as this
/// kind of exit needs (site_bytes()), as there are as many exits as guest instructions. In blocks
/// that count all of it, and behind it a byte: how many of the block's instructions have been taken
/// from the budget and not been executed.
struct Site {
    std::uint16_t page_offset = 0; // of the guest instruction (links: of the target)
    std::uint16_t back = 0;        // bytes from there to here, the low bits (see distance()): the
                                   // check; a link's or a landing's rel32; the number of a far link
    std::uint16_t extra = 0;       // from the check to the access; stack check: bytes of the range;
                                   // a branch: how the instruction moved rsp, in bytes, see
                                   // kCall; a landing: its number, the low bits (see landing())
    std::uint16_t back_high = 0;
    std::uint8_t bits = 0;
    std::uint8_t length = 0; // of the guest instruction
    std::uint8_t size = 0;   // of the access (stack check: of the first one)
    std::int16_t low = 0;    // stack check: first byte of the range, from guest rsp
    std::int16_t first = 0;  // stack check: the first access, from guest rsp

    std::uint32_t distance() const { return back | std::uint32_t{back_high} << 16; }
    void set_distance(std::ptrdiff_t bytes) {
        back = static_cast<std::uint16_t>(bytes);
        back_high = static_cast<std::uint16_t>(bytes >> 16);
    }

    std::uint32_t landing() const { return extra | std::uint32_t{bits} >> 6 << 16; }
    void set_landing(std::uint32_t number) {
        extra = static_cast<std::uint16_t>(number);
        bits = static_cast<std::uint8_t>(kLanding | number >> 16 << 6);
    }

    static constexpr std::uint8_t kWrite = 1;
    static constexpr std::uint8_t kFarLink = 1;    // branch: a direct one, `back` is its number
    static constexpr std::uint8_t kLanding = 2;    // branch: none, the landing of a call; the
                                                   // return that led there is at return_site
    static constexpr std::uint8_t kVector = 2;     // the interpreter needs the vector state
    static constexpr std::uint8_t kInSlot = 4;     // link: the flags are in the slot …
    static constexpr std::uint8_t kInRegister = 8; // … and/or in the register
    static constexpr std::uint8_t kBackward = 16;  // link: must poll
    static constexpr std::uint8_t kCareful = 16;   // miss: the interpreter decides which fault
    static constexpr std::uint8_t kCall = 32;      // `extra` is added to rsp, otherwise taken off
    static constexpr std::uint8_t kMade = 64;    // link: Frame::flag_maker computes them, from the
                                                 // guest registers in `extra`
    static constexpr std::uint8_t kVariant = 32; // link: to the target's variant kEachChecked
    static constexpr std::uint8_t kGroup = 4;    // miss: of a base group, of `extra` bytes …
    static constexpr std::uint8_t kEarly = 8;    // … that will be written, but not by this access
    static constexpr std::uint8_t kKnown = 32;   // miss: r13 is the address
    static constexpr std::uint8_t kSingle = 64;  // the access is at [r13], not [… + r14]
    static constexpr std::uint8_t kTurned = 128; // miss of a locked access: r13 is rotated right
                                                 // by log2(size)
};
static_assert(sizeof(Site) == 16);

/// Why translated code returned to the dispatcher.
enum class Exit : std::uint32_t {
    Miss,      // TLB, at the site
    StackMiss, // stack page cache
    Check,     // either, in a shared check: exit_site is behind its call
    Link,      // direct jump not linked yet
    Branch,    // r13 = target, not in the branch cache; the site tells how to undo
    Stale,     // r13 = target, no site: its block is dead
    Attention, // poll
    Interpret, // the instruction at the site
    HostFault, // the instruction at r13 & 0xfff raised a host signal; bit 12: a poll; bits 23:16
               // as the byte behind a Site
    Budget,    // the budget does not last for the block
    Count
};

/// Where the guest's flags are when translated code leaves.
enum class FlagPlace : std::uint8_t { Register, Slot, Made };

/// What a miss in a shared check needs. A block's are at the end of what is out of its way, in
/// ascending order.
struct CheckSite {
    enum class Of : std::uint8_t { Access, Group, Stack };

    Site site;
    std::uint32_t maker = 0;  // Register: offset in code memory of what brings the flags there
    std::uint16_t behind = 0; // the call, from the beginning of the block
    std::uint8_t left = 0;    // see Site
    FlagPlace flags : 4 = FlagPlace::Slot;
    Of of : 4 = Of::Access;

    static constexpr std::uint32_t kCallBytes = 5;
};

static_assert(sizeof(CheckSite) == 24);

/// Of a Site.
constexpr std::size_t site_bytes(Exit why) {
    switch (why) {
    case Exit::Attention: return offsetof(Site, back);
    case Exit::Link:
    case Exit::Branch: return offsetof(Site, length);
    case Exit::Miss: return offsetof(Site, size) + 1;
    case Exit::StackMiss: return sizeof(Site);
    default: return offsetof(Site, size);
    }
}

} // namespace doppel::cpu::x86::frontend
