// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Second pass of a translation: emits the host code of a scanned block.
///
/// Shape of a block:
///     far_entry        r13 = guest RIP, flags in the slot: notes page_va, polls
///     slot_entry       restores the flags, if the body wants them in the register
///     native_poll      flags in the register: polls by following header.attention
///     native_entry     saves the flags, if the body wants them in the slot: then the other two
///                      entries come behind this one
///     body
///     cold code        misses, unlinked jumps: exits with a Site behind them
///     check sites      of a compact block: its checks, flags saved and, in users' code, branches
///                      are calls of stubs, which know where they were called (SharedChecks)
///
/// Flags live in the host's EFLAGS and/or in the frame's slot. A TLB check destroys the register,
/// so before it the flags go to the slot (unless they are there already): a fault at the access
/// must find them. They come back when an instruction needs them.
#include <array>
#include <vector>

#include "cpu/translator/cache/block.hpp"
#include "cpu/translator/emit/assembler.hpp"
#include "cpu/x86/frontend/block_scan.hpp"
#include "cpu/x86/frontend/frame.hpp"
#include "cpu/x86/frontend/rewrite.hpp"
#include "cpu/x86/frontend/stubs.hpp"

namespace doppel::cpu::x86::frontend {

class BlockTranslator {
    /// How to compute the flags again.
    struct Recipe {
        const ScannedInstruction* maker = nullptr;
        /// Undo: do the opposite first, which gives its operand back. Result: that of AND, OR, XOR
        /// says it all. OnCopy: again, on what Frame::flag_operand holds.
        enum class How : std::uint8_t { Again, Undo, Result, OnCopy } how = How::Again;
        /// The guest register whose value is in Frame::flag_operand; kKept: what no register holds.
        std::uint8_t kept = kNone;
        static constexpr std::uint8_t kNone = 0xff, kKept = 0xfe;
        explicit operator bool() const { return maker != nullptr; }
        bool operator==(const Recipe&) const = default;
    };
    /// A shared check.
    struct Check {
        CheckSite site;
        Recipe recipe;
    };
    /// Code out of the way: a call to a stub, or the far jump of a condition.
    struct Cold {
        std::uint8_t* place = nullptr; // rel32 that leads here
        Exit why = Exit::Miss;
        FlagPlace flags = FlagPlace::Slot;
        std::uint8_t* relative_to = nullptr;
        Site site;
        std::uint8_t left = 0; // see Site
        bool far = false;
        bool counted_branch = false; // a side exit of a block that counts
        bool flags_saved = false;
        bool group = false;
        bool lent = false; // leaves instructions that use lent homes
        Recipe recipe;     // the flags are neither in the slot nor in the register
        std::int64_t target = 0;
        const ScannedInstruction* at = nullptr;
    };
    struct Maker {
        std::uint8_t* place = nullptr; // of the offset that leads to it
        Recipe recipe;
    };

public:
    /// Lists that keep their memory from one translation to the next.
    class Workspace {
        friend BlockTranslator;
        std::vector<Cold> cold_;
        std::vector<Maker> makers_;
        std::vector<Check> checks_;
        std::vector<translator::SignalSite> signals_;
    };

    BlockTranslator(translator::Assembler& to, const Stubs& stubs, const BlockScan& scan,
                    Workspace& space)
        : a_{to}, stubs_{stubs}, scan_{scan}, cold_{space.cold_}, signals_{space.signals_},
          makers_{space.makers_}, checks_{space.checks_},
          counting_{(scan.mode & mode::kCount) != 0}, code32_{(scan.mode & mode::kCode32) != 0},
          fixed_{(scan.mode & mode::kFixed) != 0}, compact_{scan.compact},
          word_{word_bytes(scan.mode)}, next_far_link_{scan.far_link} {}

    /// Fills everything of `out` but key, what is in the workspace included. The result is void
    /// when the assembler is full().
    void translate(translator::NewBlock& out);
    /// The loop could not be translated as one.
    bool failed() const { return scan_.loop.active && !closed_; }
    /// What the next block's BlockScan::far_link shall be.
    std::uint16_t next_far_link() const { return next_far_link_; }

private:
    using Assembler = translator::Assembler;
    using HostReg = translator::HostReg;
    static constexpr HostReg kNoReg = translator::kNoReg;

    // --- entries.cpp ---
    void translate_one(std::size_t index);
    void emit_entries(translator::NewBlock& out);
    void emit_far_entry(translator::NewBlock& out);
    void emit_slot_entries(translator::NewBlock& out);
    void emit_native_entries(translator::NewBlock& out);
    void emit_native_poll();
    void emit_dead_entries(translator::NewBlock& out);
    void emit_counting_entries(translator::NewBlock& out);
    void emit_cold();
    void emit_cold_exit(const Cold& cold, const std::uint8_t* check);
    void emit_leave(Exit why, const std::uint8_t* stub, const Site& site, std::uint8_t left);

    // --- emit_lend.cpp ---
    void emit_lend(bool in_miss);
    void end_lending();
    void emit_lend_again(Cold& cold);
    void emit_lent_link(const Cold& cold);

    // --- emit_recipe.cpp ---
    Recipe recipe_of(const ScannedInstruction& at) const;
    static Recipe::How recipe_with_operand(const Instruction& in);
    static std::uint16_t registers_of(const Recipe& recipe);
    bool operand_pays(std::size_t index) const;
    bool keep_operand(const ScannedInstruction& at);
    void keep_memory_operand(const ScannedInstruction& at, Rewrite& with);
    void keep_shifted(const ScannedInstruction& at);
    void emit_test_result(const Recipe& recipe);
    void emit_recipe(const Recipe& recipe);

    // --- emit_flags.cpp ---
    void keep_flags_across(const ScannedInstruction& at);
    void note_flags(const ScannedInstruction& at);
    void save_flags();    // into the slot; clobbers scratch 1
    void restore_flags(); // into the register; clobbers scratch 1
    void clobber_flags();
    void clobber_in_check();
    void hold_flags();
    void leave_maker();
    void emit_makers();
    bool flags_dead_from(std::size_t index) const;
    bool cannot_stop(const ScannedInstruction& at) const;
    /// Behind a check: what its miss needs.
    Recipe lost_recipe() const { return saved_ ? Recipe{} : recipe_; }
    FlagPlace lost_place() const { return made_ ? FlagPlace::Made : FlagPlace::Slot; }

    // --- memory.cpp ---
    /// Where an access may go after its check: [r12 + r14 + d], [base + r14 + d], [r13 + r14], or
    /// with `single` [r13], which leaves r14 free.
    Mem access(const ScannedInstruction& at, std::uint32_t size, bool write, bool single);
    Mem other_access(const ScannedInstruction& at); // a word of a PUSH or CALL through memory
    void compare_tag(bool write);
    void compare_limit(std::uint32_t bytes);
    const std::uint8_t* shared_check(bool write, CheckGives gives, std::uint32_t bytes) const {
        return compact_ ? stubs_.shared.check(write, gives, bytes) : nullptr;
    }
    void emit_check(const ScannedInstruction& at, const Mem* simple, std::uint32_t size, bool write,
                    bool single, Cold& miss);
    void emit_locked_check(const ScannedInstruction& at, const Mem* simple, std::uint32_t size,
                           bool write, bool single, Cold& miss);
    bool call_check(const ScannedInstruction& at, const Mem* simple, std::uint32_t size, bool write,
                    bool single);
    void note_check(const ScannedInstruction& at, const Site& site, CheckSite::Of of);
    void emit_check_sites(translator::NewBlock& out);
    static std::int32_t tag_offset(bool write) {
        return write ? DOPPEL_TLB(wtag) : DOPPEL_TLB(rtag);
    }
    static constexpr Mem tlb_entry(std::int32_t array) { return {kTlb, kScratch1, 8, array}; }
    void emit_lookup(const ScannedInstruction& at, const Mem* simple, bool write);
    Mem checked(const ScannedInstruction& at, const Mem* simple, std::uint32_t size, bool write,
                bool single);
    Mem checked_known(const ScannedInstruction& at, std::uint64_t linear, std::uint32_t size,
                      bool write, bool single);
    Site miss_site(const ScannedInstruction& at, std::uint32_t size, bool write, bool single,
                   const std::uint8_t* check) const;
    void push_miss(Cold& miss, const ScannedInstruction& at);
    bool known_operand(const ScannedInstruction& at, std::uint32_t size,
                       std::uint64_t& linear) const;
    /// Of a byte relative to the block's page.
    std::uint64_t linear_of(std::int64_t offset) const {
        return scan_.page_va + static_cast<std::uint64_t>(offset);
    }
    bool is_known(std::int64_t offset) const;
    void compute_offset(const ScannedInstruction& at, std::int32_t distance = 0);
    void compute_address(const ScannedInstruction& at, std::int32_t distance = 0);
    void emit_index(translator::HostReg address) { a_.bextr(kScratch1, address, kTlb); }
    void emit_operand_index(const ScannedInstruction& at, std::int32_t distance);
    void add_base32(const ScannedInstruction& at);
    /// Base, index, displacement as host operands, slots and RIP loaded into scratch registers.
    Mem address_parts(const ScannedInstruction& at);
    bool simple_address(const Instruction& in, Mem& out) const;

    // --- emit_stack.cpp ---
    /// Likewise [rsp + offset] of a push, pop, call, return; r13 is free afterwards.
    Mem stack_access(const ScannedInstruction& at, std::int32_t offset, bool write);
    Mem cached_stack(const ScannedInstruction& at, std::int32_t offset, std::uint32_t size,
                     bool write, bool single);
    void check_stack_group(const ScannedInstruction& at, std::int32_t offset, std::uint32_t size,
                           bool write);
    std::int32_t silent_rsp_move(const ScannedInstruction& at) const;
    bool reaches_over_rsp(const ScannedInstruction& at) const;
    bool rsp_can_wait(std::size_t index) const;
    bool defer_rsp(const ScannedInstruction& at);
    void move_rsp(std::int32_t bytes);
    void pay_rsp();

    // --- emit_group.cpp ---
    Mem group_access(const ScannedInstruction& at, bool write);
    void leave_scratch0();
    void check_base_group(const ScannedInstruction& at, bool write, bool writable);

    // --- emit_loop.cpp ---
    void emit_loop_start();
    void emit_loop_group(std::size_t number);
    void emit_loop_address(const LoopGroup& group);
    void emit_loop_host(const LoopGroup& group, std::size_t number);
    void emit_loop_turns(const LoopGroup& group);
    void emit_loop_limit();
    Mem loop_access(const ScannedInstruction& at, bool single);
    void emit_loop_end(const ScannedInstruction& at);

    // --- of a word, which has 4 or 8 bytes ---
    void load_word(HostReg to, const Mem& from);
    void store_word(const Mem& to, HostReg from);
    void address_word(HostReg to, const Mem& address); // lea; wraps at 4 GiB in 32-bit code

    // --- integer.cpp ---
    void emit_instruction(const ScannedInstruction& at);
    void emit_generic(const ScannedInstruction& at);
    void emit_high_byte_memory(const ScannedInstruction& at);
    bool is_the_same(const Instruction& in) const;
    void emit_body(const ScannedInstruction& at, const Instruction& in, const Rewrite& with);
    void emit_zero_vectors(const ScannedInstruction& at);
    void emit_constant(HostReg to, std::int32_t value, bool narrow);
    void emit_lea(const ScannedInstruction& at);
    void emit_push(const ScannedInstruction& at);
    void emit_push_memory(const ScannedInstruction& at);
    void emit_push_segment(const ScannedInstruction& at);
    void emit_pop(const ScannedInstruction& at);
    void emit_leave(const ScannedInstruction& at);
    void emit_rdtsc(bool with_aux);

    // --- emit_slots.cpp ---
    static std::uint16_t slot_operands(const Instruction& in);
    void settle_slots(const ScannedInstruction& at) {
        if (held_[0].reg != HeldSlot::kNone || held_[1].reg != HeldSlot::kNone)
            settle_held(at);
    }
    void settle_held(const ScannedInstruction& at);
    void write_slots();
    void release_slots();
    void take(HostReg scratch);
    void forget_slot(unsigned reg);
    HostReg holder(unsigned reg) const;
    HostReg hold_slot(const ScannedInstruction& at, unsigned reg, bool load, std::uint16_t kept);
    static constexpr auto kNever = static_cast<std::size_t>(-1);
    std::size_t next_read(const ScannedInstruction& at, unsigned reg) const;
    bool read_soon(const ScannedInstruction& at, unsigned reg) const {
        return next_read(at, reg) != kNever;
    }
    bool assign_slots(const ScannedInstruction& at, bool single, Rewrite& out);
    void emit_with_assigned(const ScannedInstruction& at, const Rewrite& with);
    void emit_with_held(const ScannedInstruction& at, Rewrite& with, std::uint16_t slots);
    bool emit_slot_as_memory(const ScannedInstruction& at);
    bool emit_slot_as_source(const ScannedInstruction& at, std::uint16_t slots);
    void emit_plain(const ScannedInstruction& at);
    void emit_slots_and_memory(const ScannedInstruction& at, Rewrite& with);
    bool lea_with_held(const ScannedInstruction& at, Mem& parts, HostReg& to);

    // --- emit_string.cpp ---
    void emit_string(const ScannedInstruction& at);
    void emit_rep_string(const ScannedInstruction& at);
    void interpret_if_downwards(const ScannedInstruction& at);
    void check_string(const ScannedInstruction& at, HostReg pointer, const Mem& addend);
    void emit_string_chunk(const ScannedInstruction& at);
    void check_whole_string(const ScannedInstruction& at, HostReg pointer, const Mem& addend,
                            std::vector<std::uint8_t*>& elsewhere);
    void emit_host_string(const ScannedInstruction& at);

    // --- emit_x87.cpp ---
    /// Flag-free; clobbers both scratch registers.
    void note_x87(const ScannedInstruction& at);
    void note_x87_selector(std::size_t pointer, unsigned segment);

    // --- emit_system.cpp ---
    void emit_interrupt_flag(const ScannedInstruction& at);
    void emit_pause(const ScannedInstruction& at);
    void emit_direction_flag(const ScannedInstruction& at);
    void emit_flags_image(); // rflags into scratch 0; clobbers scratch 1
    void emit_pushf(const ScannedInstruction& at);
    void emit_popf(const ScannedInstruction& at);
    void emit_pack_flags(); // those of scratch 0 into the slot; clobbers both
    void emit_alignment_flag(const ScannedInstruction& at);
    void emit_swapgs();
    void emit_read_control(const ScannedInstruction& at);
    void emit_segment_base(const ScannedInstruction& at);
    void emit_syscall(const ScannedInstruction& at);
    void emit_sysret(const ScannedInstruction& at);
    void emit_segments(std::size_t cs, std::size_t ss);
    void interpret_unless_canonical(HostReg value, const ScannedInstruction& at);
    void emit_read_segment(const ScannedInstruction& at);
    void emit_bit_string(const ScannedInstruction& at);
    void add_bit_offset(const ScannedInstruction& at);

    void emit_interpret(const ScannedInstruction& at);
    void interpret_if(translator::Condition condition, const ScannedInstruction& at);

    // --- branch.cpp ---
    void emit_jump(const ScannedInstruction& at);
    void emit_conditional(const ScannedInstruction& at);
    void emit_counter_branch(const ScannedInstruction& at);
    void emit_call(const ScannedInstruction& at);
    void emit_indirect(const ScannedInstruction& at);
    void load_target(const ScannedInstruction& at);
    void check_canonical_target(const ScannedInstruction& at);
    void emit_return(const ScannedInstruction& at);
    bool pairs_returns() const;
    void emit_landing_index(HostReg from);
    void emit_landing_pair(const ScannedInstruction& at);
    void emit_landing(const ScannedInstruction& at);
    void emit_landing_exit(const Cold& cold);
    void emit_paired_return(const ScannedInstruction& at, std::uint16_t bytes);
    void emit_push_return_address(const ScannedInstruction& at);
    void link_jump(const ScannedInstruction& at, std::int64_t target);
    void far_jump(const ScannedInstruction& at, std::int64_t target, std::uint16_t undo);
    void far_jump_from(std::int64_t from, const ScannedInstruction& at, std::int64_t target,
                       std::uint16_t undo);
    void find_target(const ScannedInstruction& at, std::int64_t target, std::uint16_t undo);
    void branch_cache_jump(const ScannedInstruction& at, std::uint16_t undo);
    bool shares_branches() const;
    void shared_branch_jump(const ScannedInstruction& at, std::uint16_t undo);
    void save_flags_at_end();
    void known_branch_jump(const ScannedInstruction& at, std::int64_t target, std::uint16_t undo);
    void far_link_jump(const ScannedInstruction& at, std::uint16_t undo);
    static Site branch_site(const ScannedInstruction& at, std::uint16_t undo);
    void jump_or_ask(const Mem& to, const Site& site);
    void cold_link(const ScannedInstruction& at, std::int64_t target, std::uint8_t* place);
    bool linkable(const ScannedInstruction& at, std::int64_t target) const;
    std::int64_t target_of(const ScannedInstruction& at) const;

    void emit_far_cold(const Cold& cold);
    void emit_crossing(const Cold& cold);
    void emit_counted_branch(const Cold& cold);
    /// Instructions of the block from `at` on, which has not been executed.
    std::uint8_t left_before(const ScannedInstruction& at) const {
        return at.index < counted_ ? static_cast<std::uint8_t>(counted_ - at.index) : 0;
    }
    void emit_stack_refill(const Cold& cold, const std::uint8_t* check);
    void note_signal(const ScannedInstruction& at, bool poll = false);

    Assembler& a_;
    const Stubs& stubs_;
    const BlockScan& scan_;
    std::vector<Cold>& cold_;
    std::vector<translator::SignalSite>& signals_;
    std::vector<Maker>& makers_;
    std::vector<Check>& checks_;
    const std::uint8_t* begin_ = nullptr;
    const std::uint8_t* exit_begin_ = nullptr; // of the exit that the body ends with, if it does
    bool native_ = true;                       // the register holds the flags
    bool saved_ = false;                       // the slot holds them
    Recipe recipe_;             // they can be computed: one of the three always holds
    bool operand_kept_ = false; // that of the instruction in translation, in Frame::flag_operand
    bool made_ = false;         // or as Frame::flag_maker says
    bool dying_ = false;        // behind this instruction nothing sees them
    std::array<bool, BlockScan::kMaxGroups> group_checked_{};
    /// What is known of a base group from here on: its host address, which is in the frame if
    /// scratch 0 has been needed since, and that it is writable; how many accesses are done.
    struct GroupState {
        bool found = false, in_frame = false, writable = false;
        std::uint8_t done = 0;
    };
    std::array<GroupState, BlockScan::kMaxBases> group_states_{};
    std::uint8_t in_scratch0_ = ScannedInstruction::kNoGroup; // whose host address is there, too
    bool stack_in_scratch1_ = false;                          // the addend of the stack page
    std::int32_t rsp_owed_ = 0;                               // to be added to guest rsp
    /// The guest register without a home that a scratch register holds; dirty: its slot is stale.
    struct HeldSlot {
        static constexpr std::uint8_t kNone = 0xff;
        std::uint8_t reg = kNone;
        bool dirty = false;
    };
    std::array<HeldSlot, 2> held_{};
    std::size_t body_bytes_ = 0; // of the guest instruction that was emitted last, ending at
    const std::uint8_t* body_end_ = nullptr;
    bool ended_ = false;
    bool landing_used_ = false; // the number in the scan
    bool lending_ = false;
    const std::uint8_t* loop_entry_ = nullptr; // polls, flags in the register
    const std::uint8_t* turn_begin_ = nullptr;
    bool closed_ = false;         // the loop
    bool x87_page_noted_ = false; // the page of FIP, by an earlier instruction of this block
    const bool counting_;
    const bool code32_;
    const bool fixed_;        // see mode::fixed()
    const bool compact_;      // see SharedChecks
    const std::uint8_t word_; // bytes: see word_bytes()
    std::uint16_t next_far_link_;
    std::uint8_t counted_ = 0; // instructions that the block takes from the budget
};

} // namespace doppel::cpu::x86::frontend
