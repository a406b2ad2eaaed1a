// SPDX-License-Identifier: Apache-2.0
/// Guest memory accesses: address computation and the inline check of the soft TLB. The sequences
/// are those of docs/decisions/002.
#include "cpu/x86/frontend/block_translator.hpp"

#include <bit>

#include "cpu/x86/frontend/classify.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

namespace {

/// Displacements up to here are added with 64 bits in 32-bit code: should the sum leave the 4 GiB,
/// no tag matches it, and the interpreter finds the place.
constexpr std::int64_t kNear32 = 0x8000;

} // namespace

bool BlockTranslator::simple_address(const Instruction& in, Mem& out) const {
    if (in.memory_base == kRip || in.memory_base == kNoRegister || in_slot(in.memory_base) ||
        in.memory_index != kNoRegister || in.memory_segment >= Fs || in.address_size != word_)
        return false;
    if (code32_ && (in.displacement < -kNear32 || in.displacement > kNear32))
        return false;
    out = {kHome[in.memory_base], kNoReg, 1, static_cast<std::int32_t>(in.displacement)};
    return true;
}

/// The linear address is an immediate of 32 bits, and so is what is near by.
bool BlockTranslator::is_known(std::int64_t offset) const {
    const auto linear = static_cast<std::int64_t>(linear_of(offset));
    const auto fits = [](std::int64_t value) { return value == static_cast<std::int32_t>(value); };
    constexpr std::int64_t kNear = 4096;
    return fixed_ && fits(linear - kNear) && fits(linear + kNear);
}

/// Relative to rip, all in one page, and aligned if that matters.
bool BlockTranslator::known_operand(const ScannedInstruction& at, std::uint32_t size,
                                    std::uint64_t& linear) const {
    const Instruction& in = at.in;
    if (in.memory_base != kRip || in.memory_segment >= Fs || in.address_size != 8 ||
        at.treatment == Treatment::BitString)
        return false;
    const std::int64_t offset = in.displacement + at.page_offset + in.length;
    linear = linear_of(offset);
    return is_known(offset) && (linear & 0xfff) + size <= 4096 &&
           (!is_locked(in) || (linear & (size - 1)) == 0);
}

Mem BlockTranslator::address_parts(const ScannedInstruction& at) {
    const Instruction& in = at.in;
    Mem parts{kNoReg, kNoReg, 1, static_cast<std::int32_t>(in.displacement)};
    if (in.memory_base == kRip) {
        parts.displacement += at.page_offset + in.length;
        if (is_known(parts.displacement)) {
            parts.displacement = static_cast<std::int32_t>(linear_of(parts.displacement));
        } else {
            a_.load(kScratch0, DOPPEL_FRAME(page_va));
            parts.base = kScratch0;
        }
    } else if (in.memory_base != kNoRegister) {
        parts.base = kHome[in.memory_base];
        if (in_slot(in.memory_base)) {
            a_.load(kScratch0, slot(in.memory_base));
            parts.base = kScratch0;
        }
    }
    if (in.memory_index != kNoRegister) {
        parts.index = kHome[in.memory_index];
        parts.scale = in.memory_scale;
        if (in_slot(in.memory_index)) {
            a_.load(kScratch1, slot(in.memory_index));
            parts.index = kScratch1;
        }
    }
    return parts;
}

void BlockTranslator::load_word(HostReg to, const Mem& from) {
    if (code32_)
        a_.load32(to, from);
    else
        a_.load(to, from);
}

void BlockTranslator::store_word(const Mem& to, HostReg from) {
    if (code32_)
        a_.store32(to, from);
    else
        a_.store(to, from);
}

void BlockTranslator::address_word(HostReg to, const Mem& address) {
    if (code32_)
        a_.lea32(to, address);
    else
        a_.lea(to, address);
}

/// Offset of the memory operand in its segment, `distance` bytes on, into scratch 0.
void BlockTranslator::compute_offset(const ScannedInstruction& at, std::int32_t distance) {
    const Instruction& in = at.in;
    if (code32_ && has_known_offset(in)) {
        a_.mov_imm(kScratch0, static_cast<std::uint32_t>(in.displacement + distance));
    } else if (in.displacement_size == 8) { // moffs
        a_.mov_imm(kScratch0, static_cast<std::uint64_t>(in.displacement));
    } else {
        Mem parts = address_parts(at);
        parts.displacement += distance;
        if (in.address_size == 4)
            a_.lea32(kScratch0, parts);
        else if (parts.base == kScratch0 && parts.index == kNoReg && parts.displacement == 0)
            return; // is there
        else if (parts.base == kNoReg && parts.index == kNoReg)
            a_.mov_imm(kScratch0, static_cast<std::uint64_t>(std::int64_t{parts.displacement}));
        else if (parts.index == kNoReg && parts.displacement == 0)
            a_.mov(kScratch0, parts.base); // renamed: a cycle less than lea
        else
            a_.lea(kScratch0, parts);
    }
}

/// TLB index of the address in scratch 0, which is that of the operand, `distance` bytes on.
void BlockTranslator::emit_operand_index(const ScannedInstruction& at, std::int32_t distance) {
    const auto address = static_cast<std::uint32_t>(at.in.displacement + distance);
    if (code32_ && has_known_offset(at.in) && at.in.memory_segment < Fs)
        a_.mov_imm(kScratch1, TlbInstance::index(address));
    else
        emit_index(kScratch0);
}

/// Linear address of the memory operand, `distance` bytes on, into scratch 0.
void BlockTranslator::compute_address(const ScannedInstruction& at, std::int32_t distance) {
    compute_offset(at, distance);
    if (at.in.memory_segment < Fs)
        return;
    if (code32_)
        add_base32(at);
    else
        a_.alu(Alu::Add, kScratch0, segment_base(at.in.memory_segment));
}

/// Of FS or GS. If the segment does not reach over all 4 GiB, the guard makes an address of it that
/// no tag matches.
void BlockTranslator::add_base32(const ScannedInstruction& at) {
    const Instruction& in = at.in;
    if (!has_known_offset(in) && in.memory_size > 1) { // beyond 4 GiB, which the base may hide
        a_.alu_imm(Alu::Cmp, kScratch0, -std::int32_t{in.memory_size}, false);
        interpret_if(Condition::Above, at);
    }
    a_.alu32(Alu::Add, kScratch0, segment_base(in.memory_segment));
    const std::size_t number = in.memory_segment - std::size_t{Fs};
    const std::size_t guard = offsetof(Frame, segment_guard) + number * 8;
    a_.alu(Alu::Or, kScratch0, frame_at(guard));
}

Mem BlockTranslator::access(const ScannedInstruction& at, std::uint32_t size, bool write,
                            bool single) {
    if (at.loop_access.group != LoopAccess::kNone)
        return loop_access(at, single);
    if (at.stack)
        return cached_stack(at, at.stack_offset, size, write, single);
    if (at.base_group != ScannedInstruction::kNoGroup)
        return group_access(at, write);
    clobber_in_check();
    Mem simple;
    return checked(at, simple_address(at.in, simple) ? &simple : nullptr, size, write, single);
}

/// Checked by itself, whatever the scan has found: for an instruction that accesses the stack, too.
Mem BlockTranslator::other_access(const ScannedInstruction& at) {
    clobber_in_check();
    Mem simple;
    return checked(at, simple_address(at.in, simple) ? &simple : nullptr, word_, false, false);
}

/// Of the address in scratch 0: the offset in the page is left, if the tag is that of the page.
void BlockTranslator::compare_tag(bool write) {
    if (write)
        a_.alu(Alu::Xor, kScratch0, tlb_entry(DOPPEL_TLB(wtag)));
    else
        a_.alu(Alu::Xor, kScratch0, tlb_entry(DOPPEL_TLB(rtag)));
}

Site BlockTranslator::miss_site(const ScannedInstruction& at, std::uint32_t size, bool write,
                                bool single, const std::uint8_t* check) const {
    return {.page_offset = at.page_offset,
            .extra = static_cast<std::uint16_t>(a_.here() - check),
            .bits = static_cast<std::uint8_t>(
                (write ? Site::kWrite : 0) | (single ? Site::kSingle : 0) |
                (at.in.type >= InstructionClass::X87 ? Site::kVector : 0) |
                (interpreter_decides(at.in) ? Site::kCareful : 0)),
            .length = at.in.length,
            .size = static_cast<std::uint8_t>(size)};
}

void BlockTranslator::push_miss(Cold& miss, const ScannedInstruction& at) {
    miss.left = left_before(at);
    miss.recipe = lost_recipe();
    miss.flags = lost_place();
    cold_.push_back(miss);
}

/// Its page, its place in the TLB and whether it lies in two pages are known now.
Mem BlockTranslator::checked_known(const ScannedInstruction& at, std::uint64_t linear,
                                   std::uint32_t size, bool write, bool single) {
    const auto entry = static_cast<std::int32_t>(TlbInstance::index(linear) * 8);
    std::uint8_t* const start = a_.here();
    a_.alu_mem_imm32(Alu::Cmp, {kTlb, kNoReg, 1, tag_offset(write) + entry},
                     static_cast<std::int32_t>(linear & ~std::uint64_t{0xfff}));
    Cold miss;
    miss.place = a_.jump_if_later(Condition::NotEqual);
    const HostReg page = single ? kScratch0 : kScratch1;
    a_.load(page, {kTlb, kNoReg, 1, DOPPEL_TLB(page_host) + entry});
    miss.relative_to = start;
    miss.site = miss_site(at, size, write, single, start);
    miss.site.bits |= Site::kKnown;
    miss.target = static_cast<std::int64_t>(linear);
    push_miss(miss, at);
    return {page, kNoReg, 1, static_cast<std::int32_t>(linear & 0xfff)};
}

/// The offset in the page, of an access of so many bytes.
void BlockTranslator::compare_limit(std::uint32_t bytes) {
    const std::size_t known = TlbInstance::limit_of(bytes);
    if (known == TlbInstance::kNoLimit)
        a_.alu_imm(Alu::Cmp, kScratch0, static_cast<std::int32_t>(4096 - bytes));
    else
        a_.alu(Alu::Cmp, kScratch0,
               {kTlb, kNoReg, 1, DOPPEL_TLB(limits) + static_cast<std::int32_t>(known * 8)});
}

/// Scratch 0: the offset in the page, if the page is the tag's; scratch 1: the index.
void BlockTranslator::emit_lookup(const ScannedInstruction& at, const Mem* simple, bool write) {
    if (simple != nullptr && simple->displacement == 0) {
        emit_index(simple->base);
        if (write)
            a_.load(kScratch0, tlb_entry(DOPPEL_TLB(wtag)));
        else
            a_.load(kScratch0, tlb_entry(DOPPEL_TLB(rtag)));
        a_.alu(Alu::Xor, kScratch0, simple->base);
        return;
    }
    if (simple != nullptr)
        a_.lea(kScratch0, *simple);
    else
        compute_address(at);
    if (at.treatment == Treatment::BitString)
        add_bit_offset(at);
    if (simple != nullptr || at.treatment == Treatment::BitString)
        emit_index(kScratch0);
    else
        emit_operand_index(at, 0);
    compare_tag(write);
}

/// By a call. False: there is none for this size.
bool BlockTranslator::call_check(const ScannedInstruction& at, const Mem* simple,
                                 std::uint32_t size, bool write, bool single) {
    const CheckGives gives = single              ? CheckGives::HostAddress
                             : simple != nullptr ? CheckGives::Addend
                                                 : CheckGives::PageHost;
    const std::uint8_t* const shared = shared_check(write, gives, size);
    if (shared == nullptr)
        return false;
    if (simple == nullptr)
        compute_address(at);
    else if (simple->displacement == 0)
        a_.mov(kScratch0, simple->base);
    else
        a_.lea(kScratch0, *simple);
    if (at.treatment == Treatment::BitString)
        add_bit_offset(at);
    a_.call(shared);
    note_check(at, miss_site(at, size, write, single, a_.here()), CheckSite::Of::Access);
    return true;
}

/// Behind the call of a shared check.
void BlockTranslator::note_check(const ScannedInstruction& at, const Site& site, CheckSite::Of of) {
    Check& check = checks_.emplace_back();
    check.recipe = lost_recipe();
    check.site.site = site;
    check.site.behind = static_cast<std::uint16_t>(a_.here() - begin_);
    check.site.left = left_before(at);
    check.site.flags = check.recipe ? FlagPlace::Register : lost_place();
    check.site.of = of;
}

/// What their misses need; checks one after the other have the same flags as a rule.
void BlockTranslator::emit_check_sites(NewBlock& out) {
    const Recipe* last = nullptr;
    std::uint32_t maker = 0;
    for (Check& check : checks_) {
        if (!check.recipe)
            continue;
        if (last == nullptr || !(*last == check.recipe)) {
            maker = static_cast<std::uint32_t>(a_.here() - stubs_.base);
            emit_recipe(check.recipe);
            a_.jump(stubs_.made_register);
            last = &check.recipe;
        }
        check.site.maker = maker;
    }
    if (checks_.empty())
        return;
    a_.align(alignof(CheckSite));
    for (const Check& check : checks_)
        a_.data(check.site);
    out.checks = static_cast<std::uint16_t>(checks_.size());
}

/// Leaves in the scratch registers what the access behind it needs.
void BlockTranslator::emit_check(const ScannedInstruction& at, const Mem* simple,
                                 std::uint32_t size, bool write, bool single, Cold& miss) {
    emit_lookup(at, simple, write);
    compare_limit(size);
    miss.place = a_.jump_if_later(Condition::Above);
    if (single)
        a_.alu(Alu::Add, kScratch0, tlb_entry(DOPPEL_TLB(page_host)));
    else if (simple != nullptr)
        a_.load(kScratch1, tlb_entry(DOPPEL_TLB(addend)));
    else
        a_.load(kScratch1, tlb_entry(DOPPEL_TLB(page_host)));
}

/// A locked operand that is not aligned may lie in two cache lines: rotating the offset in the page
/// brings the low bits to the top, so that one compare sees them with everything else.
void BlockTranslator::emit_locked_check(const ScannedInstruction& at, const Mem* simple,
                                        std::uint32_t size, bool write, bool single, Cold& miss) {
    emit_lookup(at, simple, write);
    const auto turn = static_cast<unsigned>(std::countr_zero(size));
    a_.rorx(kScratch0, kScratch0, static_cast<std::uint8_t>(turn));
    a_.alu_imm(Alu::Cmp, kScratch0, static_cast<std::int32_t>((4096 - size) >> turn));
    miss.place = a_.jump_if_later(Condition::Above);
    if (simple != nullptr && !single) {
        a_.load(kScratch1, tlb_entry(DOPPEL_TLB(addend)));
        return;
    }
    a_.rorx(kScratch0, kScratch0, static_cast<std::uint8_t>(64 - turn));
    if (single)
        a_.alu(Alu::Add, kScratch0, tlb_entry(DOPPEL_TLB(page_host)));
    else
        a_.load(kScratch1, tlb_entry(DOPPEL_TLB(page_host)));
}

Mem BlockTranslator::checked(const ScannedInstruction& at, const Mem* simple, std::uint32_t size,
                             bool write, bool single) {
    // As a base r13 would need a displacement.
    const Mem result = single              ? Mem{kScratch0}
                       : simple != nullptr ? Mem{simple->base, kScratch1, 1, simple->displacement}
                                           : Mem{kScratch1, kScratch0};
    const bool locked = is_locked(at.in) && size > 1;
    if (!locked && call_check(at, simple, size, write, single))
        return result;
    if (std::uint64_t linear = 0; simple == nullptr && known_operand(at, size, linear))
        return checked_known(at, linear, size, write, single);
    std::uint8_t* const start = a_.here();
    Cold miss;
    if (locked)
        emit_locked_check(at, simple, size, write, single, miss);
    else
        emit_check(at, simple, size, write, single, miss);
    miss.relative_to = start;
    miss.site = miss_site(at, size, write, single, start);
    miss.site.bits |= locked ? Site::kTurned : std::uint8_t{0};
    push_miss(miss, at);
    return result;
}

} // namespace doppel::cpu::x86::frontend
