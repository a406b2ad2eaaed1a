// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/block_scan.hpp"

#include <algorithm>
#include <cstring>
#include <span>

#include "cpu/x86/decoder/decoder.hpp"
#include "cpu/x86/frontend/base_scan.hpp"
#include "cpu/x86/frontend/classify.hpp"
#include "cpu/x86/frontend/frame.hpp"
#include "cpu/x86/frontend/lend_scan.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

constexpr std::uint16_t kRspBit = 1u << Rsp;
constexpr std::int32_t kMaxStackRange = 1024;
constexpr unsigned kMaxConditionals = 6;

bool ends_block(Treatment treatment) {
    switch (treatment) {
    case Treatment::Jump:
    case Treatment::CounterBranch:
    case Treatment::Call:
    case Treatment::IndirectJump:
    case Treatment::IndirectCall:
    case Treatment::Return:
    case Treatment::Syscall:
    case Treatment::Sysret:
    case Treatment::Interpret: return true;
    default: return false;
    }
}

/// The instruction's access relative to rsp, if it has one that is known now.
bool stack_access(const ScannedInstruction& at, std::int32_t word, std::int32_t& offset,
                  std::int32_t& size) {
    const Instruction& in = at.in;
    switch (at.treatment) {
    case Treatment::Push:
    case Treatment::PushMemory:
    case Treatment::PushSegment:
    case Treatment::Pushf:
    case Treatment::Call:
    case Treatment::IndirectCall:
        offset = -word;
        size = word;
        return true;
    case Treatment::Pop:
    case Treatment::Popf:
    case Treatment::Return:
        offset = 0;
        size = word;
        return true;
    case Treatment::Generic:
    case Treatment::IndirectJump: break;
    default: return false;
    }
    if (is_locked(in)) // needs a check of its alignment, too
        return false;
    if (!in.has_memory() || in.memory_access == Access::Address || in.memory_base != Rsp ||
        in.memory_index != kNoRegister || in.memory_segment >= Fs || in.address_size != word)
        return false;
    if (in.displacement < -kMaxStackRange || in.displacement > kMaxStackRange)
        return false;
    offset = static_cast<std::int32_t>(in.displacement);
    size = in.memory_size;
    return true;
}

/// Change of rsp by the instruction; false when it is not a constant.
bool rsp_change(const ScannedInstruction& at, std::int32_t word, std::int64_t& change) {
    const Instruction& in = at.in;
    change = 0;
    if ((in.registers_written & kRspBit) == 0)
        return true;
    if (at.treatment == Treatment::Push || at.treatment == Treatment::PushMemory ||
        at.treatment == Treatment::PushSegment || at.treatment == Treatment::Pushf) {
        change = -word;
        return true;
    }
    if (at.treatment == Treatment::Popf) {
        change = word;
        return true;
    }
    if (at.treatment == Treatment::Pop) {
        change = word;
        return in.operands[0].reg != Rsp;
    }
    if (in.operand_size != word)
        return false;
    if (at.treatment == Treatment::Lea && in.memory_base == Rsp && in.memory_index == kNoRegister &&
        in.address_size == word) {
        change = in.displacement;
        return true;
    }
    if ((in.op == Op::Add || in.op == Op::Sub) && in.operands[1].kind == OperandKind::Immediate) {
        const auto value = word == 8 ? static_cast<std::int64_t>(in.immediate)
                                     : std::int64_t{static_cast<std::int32_t>(in.immediate)};
        change = in.op == Op::Add ? value : -value;
        return true;
    }
    return false;
}

/// The block's bytes, copied as far as they are looked at: most blocks are short, and the guest's
/// memory is cold.
class Fetch {
public:
    Fetch(BlockScan& out, const CodeBytes& code)
        : out_{out}, code_{code},
          first_{std::min<std::size_t>(code.first_count, BlockScan::kMaxBytes)} {}

    /// Those from `at` on: enough for the decoder, unless they end before.
    std::span<const std::uint8_t> from(std::size_t at) {
        if (at + kAhead > copied_ && copied_ < first_)
            copy_more();
        return {out_.bytes.data() + at, end_ - at};
    }

private:
    static constexpr std::size_t kAhead = 32, kStep = 64;

    void copy_more() {
        const std::size_t count = std::min(kStep, first_ - copied_);
        std::memcpy(out_.bytes.data() + copied_, code_.first + copied_, count);
        end_ = copied_ += count;
        if (copied_ == first_ && code_.second != nullptr) {
            std::memcpy(out_.bytes.data() + copied_, code_.second, 15);
            end_ += 15;
        }
    }

    BlockScan& out_;
    const CodeBytes& code_;
    const std::size_t first_;
    std::size_t copied_ = 0; // of the first page
    std::size_t end_ = 0;
};

class StackScan {
public:
    explicit StackScan(BlockScan& scan) : scan_{scan}, word_{word_bytes(scan.mode)} {}

    void visit(ScannedInstruction& at) {
        at.stack_group = static_cast<std::uint8_t>(group_);
        at.rsp_before = static_cast<std::int16_t>(rsp_);
        std::int32_t offset = 0;
        std::int32_t size = 0;
        if (valid_ && stack_access(at, word_, offset, size))
            note(at, offset, size);
        std::int64_t change = 0;
        if (!rsp_change(at, word_, change))
            new_group();
        else if (rsp_ + change < -8 * kMaxStackRange || rsp_ + change > 8 * kMaxStackRange)
            new_group();
        else
            rsp_ += static_cast<std::int32_t>(change);
    }

private:
    void note(ScannedInstruction& at, std::int32_t offset, std::int32_t size) {
        StackGroup& group = scan_.groups[group_];
        const std::int32_t first = rsp_ + offset;
        const std::int32_t low = group.used ? std::min<std::int32_t>(group.low, first) : first;
        const std::int32_t high =
            group.used ? std::max<std::int32_t>(group.high, first + size) : first + size;
        if (high - low > kMaxStackRange)
            return;
        group = {static_cast<std::int16_t>(low), static_cast<std::int16_t>(high), true};
        at.stack = true;
        at.stack_offset = static_cast<std::int16_t>(offset);
    }
    void new_group() {
        rsp_ = 0;
        if (group_ + 1 < BlockScan::kMaxGroups)
            ++group_;
        else
            valid_ = false;
    }

    BlockScan& scan_;
    const std::int32_t word_;
    std::size_t group_ = 0;
    std::int32_t rsp_ = 0;
    bool valid_ = true;
};

} // namespace

translator::FlagsWanted wanted_flags(const BlockScan& scan) {
    using translator::FlagsWanted;
    for (std::size_t i = 0; i < scan.count; ++i) {
        const auto& at = scan.list[i];
        const bool checks = at.stack || (at.in.has_memory() && at.treatment == Treatment::Generic &&
                                         at.in.memory_access != Access::Address);
        switch (at.treatment) {
        case Treatment::Nothing:
        case Treatment::Lea:
        case Treatment::ReadSegment:
        case Treatment::Swapgs:
        case Treatment::ReadControl:
        case Treatment::Rdtsc: continue;
        case Treatment::Generic:
            if (checks)
                return FlagsWanted::InSlot;
            if (needs_flags(at.in) || may_signal(at.in))
                return FlagsWanted::InRegister;
            if (writes_flags(at.in))
                return FlagsWanted::Either;
            continue;
        case Treatment::Push:
        case Treatment::PushMemory:
        case Treatment::PushSegment:
        case Treatment::Cld:
        case Treatment::Std:
        case Treatment::Pushf:
        case Treatment::Clac:
        case Treatment::Stac:
        case Treatment::SegmentBase:
        case Treatment::String:
        case Treatment::RepString:
        case Treatment::Syscall:
        case Treatment::Sysret:
        case Treatment::Cli:
        case Treatment::Sti:
        case Treatment::Pause:
        case Treatment::BitString:
        case Treatment::Pop:
        case Treatment::Popf:
        case Treatment::Leave:
        case Treatment::Call:
        case Treatment::IndirectJump:
        case Treatment::IndirectCall:
        case Treatment::Return: return FlagsWanted::InSlot;
        default: return FlagsWanted::InRegister;
        }
    }
    return FlagsWanted::InRegister;
}

void find_dead_flags(BlockScan& scan) {
    scan.dead_count = 0;
    scan.dead_writes = 0;
    if (scan.flags_wanted != translator::FlagsWanted::InSlot || !scan.tuning.flags ||
        (scan.mode & mode::kCount) != 0)
        return;
    for (std::size_t i = 0; i < scan.count; ++i) {
        const auto& at = scan.list[i];
        const bool plain = at.treatment == Treatment::Generic && !needs_flags(at.in) &&
                           at.in.type != InstructionClass::X87 &&
                           at.in.type != InstructionClass::Mmx;
        if (!plain && at.treatment != Treatment::Lea && at.treatment != Treatment::Nothing)
            return;
        if (plain && makes_all_flags(at.in)) {
            scan.dead_count = i + 1;
            return;
        }
        scan.dead_writes = static_cast<std::uint16_t>(scan.dead_writes | at.in.registers_written);
    }
}

void scan_block(BlockScan& out, const CodeBytes& code, std::uint16_t page_offset,
                std::uint32_t mode, const FeatureSet& features, const description::Tuning& tuning) {
    Fetch fetch{out, code};
    out.mode = mode;
    out.tuning = tuning;
    const unsigned most_conditionals = tuning.long_blocks ? kMaxConditionals : 1;
    out.count = 0;
    out.groups = {};
    out.base_count = 0;
    out.loop.active = false;
    const bool each_checked = (mode & mode::kEachChecked) != 0;
    StackScan stack{out};
    BaseScan bases{out};
    unsigned conditionals = 0;
    std::size_t at = 0;
    while (out.count < BlockScan::kMaxInstructions) {
        auto& entry = out.list[out.count];
        const std::span<const std::uint8_t> bytes = fetch.from(at);
        const auto status =
            bytes.empty() ? DecodeStatus::NeedMoreBytes : decode(bytes, code_size(mode), entry.in);
        if (status == DecodeStatus::NeedMoreBytes && out.count != 0)
            break; // the next block: it starts here and has two pages
        entry.page_offset = static_cast<std::uint16_t>(page_offset + at);
        entry.buffer_offset = static_cast<std::uint16_t>(at);
        entry.index = static_cast<std::uint8_t>(out.count);
        entry.stack = false;
        entry.base_group = ScannedInstruction::kNoGroup;
        entry.loop_access = {};
        entry.treatment = Treatment::Interpret;
        if (status != DecodeStatus::Ok)
            entry.in = Instruction{};
        else
            entry.treatment = classify(entry.in, mode, features);
        if (entry.treatment != Treatment::Interpret && !each_checked) {
            if (tuning.stack_page)
                stack.visit(entry);
            if (tuning.groups && code.second == nullptr)
                bases.visit(entry);
        }
        ++out.count;
        at += entry.in.length;
        if (ends_block(entry.treatment) || code.second != nullptr)
            break;
        if (entry.treatment == Treatment::Conditional && ++conditionals == most_conditionals)
            break;
    }
    out.end_offset = static_cast<std::uint16_t>(page_offset + at);
    bases.finish();
    out.flags_wanted = wanted_flags(out);
    find_dead_flags(out);
    out.lending_count = 0;
    if (tuning.lend && code.second == nullptr)
        lend_homes(out);
}

} // namespace doppel::cpu::x86::frontend
