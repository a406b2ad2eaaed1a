// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/base_scan.hpp"

#include <algorithm>

#include "cpu/x86/frontend/classify.hpp"
#include "cpu/x86/frontend/rewrite.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

/// Larger groups lie across the end of a page too often.
constexpr std::int32_t kMaxRange = 256;
constexpr std::int64_t kMaxDisplacement = 1 << 24;
constexpr std::int64_t kMaxKnown = 0x7fff'0000;
bool can_join(const ScannedInstruction& at, unsigned word) {
    const Instruction& in = at.in;
    if (word == 4 && in.memory_segment >= Fs) // each is checked against the limit
        return false;
    return at.treatment == Treatment::Generic && !at.stack && in.has_memory() &&
           in.memory_access != Access::Address && in.address_size == word &&
           in.type != InstructionClass::X87 && in.displacement_size != 8 && in.memory_base != Rsp &&
           !is_locked(in) && at.page_offset <= kLastStart &&
           ((in.displacement < kMaxDisplacement && in.displacement > -kMaxDisplacement) ||
            (word == 4 && has_known_offset(in) && in.displacement < kMaxKnown &&
             in.displacement > -kMaxKnown));
}

/// Relative to the base register as it is now; rip: to the block's page.
std::int32_t displacement_of(const ScannedInstruction& at) {
    const auto displacement = static_cast<std::int32_t>(at.in.displacement);
    return at.in.memory_base == kRip ? displacement + at.page_offset + at.in.length : displacement;
}

/// The base register grows by a constant.
bool constant_step(const ScannedInstruction& at, unsigned word, std::uint8_t reg,
                   std::int64_t& step) {
    const Instruction& in = at.in;
    if (in.operand_size != word || in.operands[0].kind != OperandKind::Gpr ||
        in.operands[0].reg != reg)
        return false;
    if (at.treatment == Treatment::Lea) {
        step = in.displacement;
        return in.memory_base == reg && in.memory_index == kNoRegister && in.address_size == word;
    }
    if (at.treatment != Treatment::Generic)
        return false;
    switch (in.op) {
    case Op::Inc: step = 1; return true;
    case Op::Dec: step = -1; return true;
    case Op::Add:
    case Op::Sub:
        step = word == 8 ? static_cast<std::int64_t>(in.immediate)
                         : std::int64_t{static_cast<std::int32_t>(in.immediate)};
        step = in.op == Op::Add ? step : -step;
        return in.operands[1].kind == OperandKind::Immediate;
    default: return false;
    }
}

/// Behind it addresses mean something else: another view, another base of fs or gs.
bool changes_meaning(Treatment treatment) {
    return treatment == Treatment::Clac || treatment == Treatment::Stac ||
           treatment == Treatment::Swapgs || treatment == Treatment::SegmentBase;
}

} // namespace

void BaseScan::visit(ScannedInstruction& at) {
    at.base_group = ScannedInstruction::kNoGroup;
    if (can_join(at, word_)) {
        Open* const open = find(at.in);
        const std::int32_t offset = displacement_of(at) + (open == nullptr ? 0 : open->shift);
        if (open == nullptr || !join(at, *open, offset))
            begin(at, open, displacement_of(at));
    }
    if (at.treatment == Treatment::Conditional)
        ++exits_;
    if (changes_meaning(at.treatment))
        opened_ = 0;
    else if ((at.in.registers_written & registers_) != 0)
        registers_change(at);
}

BaseScan::Open* BaseScan::find(const Instruction& in) {
    for (Open& open : opened())
        if (open.used && open.base == in.memory_base && open.index == in.memory_index &&
            open.scale == in.memory_scale && open.segment == in.memory_segment)
            return &open;
    return nullptr;
}

bool BaseScan::join(ScannedInstruction& at, Open& open, std::int32_t offset) const {
    BaseGroup& group = scan_.bases.at(open.group);
    const std::int64_t low = std::min(group.low, offset);
    const std::int64_t high =
        std::max(std::int64_t{group.high}, std::int64_t{offset} + at.in.memory_size);
    if (high - low > kMaxRange)
        return false;
    group.low = static_cast<std::int32_t>(low);
    group.high = static_cast<std::int32_t>(high);
    ++group.accesses;
    // No side exit comes before it: who begins the group writes, too.
    group.writes |= at.in.writes_memory() && open.exits == exits_;
    at.base_group = open.group;
    at.base_offset = offset;
    return true;
}

void BaseScan::begin(ScannedInstruction& at, Open* in_place_of, std::int32_t offset) {
    if (scan_.base_count == BlockScan::kMaxBases)
        return;
    Open* open = in_place_of;
    for (Open& other : opened())
        if (open == nullptr && !other.used)
            open = &other;
    if (open == nullptr && opened_ < open_.size())
        open = &open_.at(opened_++);
    if (open == nullptr)
        return;
    for (const std::uint8_t reg : {at.in.memory_base, at.in.memory_index})
        registers_ |= reg < 16 ? 1u << reg : 0u;
    const auto number = static_cast<std::uint8_t>(scan_.base_count++);
    *open = {.used = true,
             .group = number,
             .base = at.in.memory_base,
             .index = at.in.memory_index,
             .scale = at.in.memory_scale,
             .segment = at.in.memory_segment,
             .shift = 0,
             .exits = exits_};
    scan_.bases.at(number) = {.low = offset,
                              .high = offset + at.in.memory_size,
                              .accesses = 1,
                              .writes = at.in.writes_memory()};
    at.base_group = number;
    at.base_offset = offset;
}

void BaseScan::registers_change(const ScannedInstruction& at) {
    const auto written = [&at](std::uint8_t reg) {
        return reg < 16 && (at.in.registers_written >> reg & 1) != 0;
    };
    for (Open& open : opened()) {
        if (!open.used)
            continue;
        std::int64_t step = 0;
        if (written(open.index))
            open.used = false;
        else if (!written(open.base))
            continue;
        else if (constant_step(at, word_, open.base, step) &&
                 step + open.shift < kMaxDisplacement && step + open.shift > -kMaxDisplacement)
            open.shift += static_cast<std::int32_t>(step);
        else
            open.used = false;
    }
}

void BaseScan::finish() {
    if (scan_.base_count == 0)
        return;
    for (std::size_t i = 0; i < scan_.count; ++i) {
        auto& at = scan_.list.at(i);
        if (at.base_group != ScannedInstruction::kNoGroup &&
            scan_.bases.at(at.base_group).accesses < 2)
            at.base_group = ScannedInstruction::kNoGroup;
    }
}

} // namespace doppel::cpu::x86::frontend
