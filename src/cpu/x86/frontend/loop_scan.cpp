// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/loop_scan.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cpu/x86/decoder/decoder.hpp"
#include "cpu/x86/frontend/classify.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

constexpr std::int64_t kMaxOffset = 1 << 24;
constexpr std::int32_t kMaxRange = 512; // of a group
constexpr std::int32_t kMaxStep = 1024; // bytes: at least four turns to a page

/// `symbol` + offset, where the symbol is a register as it was when the turn began, or one of these
constexpr std::uint8_t kNumber = 16, kPage = 17, kUnknown = 0xff;
struct Value {
    std::uint8_t symbol = kUnknown;
    std::int64_t offset = 0;
    bool known() const { return symbol != kUnknown; }
    bool is_number() const { return symbol == kNumber; }
};

bool is_register(const Operand& operand) { return operand.kind == OperandKind::Gpr; }

class LoopScan {
public:
    LoopScan(BlockScan& out, std::uint16_t head, const FeatureSet& features)
        : out_{out}, head_{head}, features_{features} {
        for (std::uint8_t reg = 0; reg < 16; ++reg)
            value_.at(reg) = {reg, 0};
    }

    bool run(std::size_t available) {
        std::size_t at = 0;
        while (!closed_) {
            if (out_.count == BlockScan::kMaxTurn)
                return false;
            auto& entry = out_.list.at(out_.count);
            if (at >= available || decode({out_.bytes.data() + at, available - at},
                                          CodeSize::Bits64, entry.in) != DecodeStatus::Ok)
                return false;
            entry = {.in = entry.in};
            entry.page_offset = static_cast<std::uint16_t>(head_ + at);
            entry.buffer_offset = static_cast<std::uint16_t>(at);
            entry.index = static_cast<std::uint8_t>(out_.count++);
            entry.treatment = classify(entry.in, out_.mode, features_);
            at += entry.in.length;
            out_.end_offset = std::max(out_.end_offset, static_cast<std::uint16_t>(head_ + at));
            if (!visit(entry, at))
                return false;
        }
        return finish();
    }

    /// The side exits that lead to other places of the loop: they are not to be taken.
    bool leaves_seldom(const BlockFinder& blocks) const {
        for (std::size_t i = 0; i + 1 < out_.count; ++i) {
            const auto& at = out_.list.at(i);
            if (at.treatment != Treatment::Conditional)
                continue;
            const std::int64_t target = target_of(at);
            if (target > head_ && target < out_.end_offset &&
                blocks.exists(static_cast<std::uint16_t>(target)))
                return false;
        }
        return true;
    }

private:
    static std::int64_t target_of(const ScannedInstruction& at) {
        return at.page_offset + at.in.length + static_cast<std::int64_t>(at.in.immediate);
    }
    bool visit(ScannedInstruction& at, std::size_t& next);
    bool branch(ScannedInstruction& at, std::size_t& next);
    bool follow(ScannedInstruction& at, std::size_t& next);
    bool condition_known(unsigned condition, bool& taken) const;
    bool access(ScannedInstruction& at);
    bool join(ScannedInstruction& at, const LoopGroup& wanted, std::int32_t offset);
    void execute(const ScannedInstruction& at);
    void compare(const Instruction& in);
    Value result_of(const ScannedInstruction& at) const;
    Value address_of(const ScannedInstruction& at) const;
    Value source(const Operand& operand, const Instruction& in) const;
    bool finish();
    bool finish_group(LoopGroup& group);
    bool finish_access(ScannedInstruction& at);
    bool choose_counter();
    bool leaves_scratch() const;
    void choose_hosts();
    bool flags_unseen() const;
    bool step_of(std::uint8_t reg, std::int64_t& step) const {
        step = value_.at(reg).offset;
        return value_.at(reg).symbol == reg;
    }

    BlockScan& out_;
    const std::uint16_t head_;
    const FeatureSet& features_;
    std::array<Value, 16> value_{};
    Value left_, right_; // of the compare that made the flags
    bool closed_ = false;
    /// Of base and index where the instruction executes: what a turn has added up to there.
    struct Shift {
        std::int64_t base = 0, index = 0;
        bool base_lost = false, index_lost = false; // the register holds something else there
    };
    std::array<Shift, BlockScan::kMaxTurn> shifts_{};
};

bool LoopScan::visit(ScannedInstruction& at, std::size_t& next) {
    switch (at.treatment) {
    case Treatment::Generic:
        if (at.in.has_memory() && at.in.memory_access != Access::Address && !access(at))
            return false;
        execute(at);
        return true;
    case Treatment::Lea:
    case Treatment::Nothing: execute(at); return true;
    case Treatment::Conditional:
    case Treatment::Jump: return branch(at, next);
    default: return false;
    }
}

bool LoopScan::branch(ScannedInstruction& at, std::size_t& next) {
    const std::int64_t target = target_of(at);
    bool taken = at.treatment == Treatment::Jump;
    if (taken || condition_known(at.in.condition(), taken)) {
        if (!taken) {
            at.treatment = Treatment::Nothing;
            return true;
        }
        return target != head_ && follow(at, next);
    }
    closed_ = target == head_;
    return closed_ || target > at.page_offset;
}

/// A jump that is always taken.
bool LoopScan::follow(ScannedInstruction& at, std::size_t& next) {
    const std::int64_t target = target_of(at);
    if (target < head_ || target >= head_ + static_cast<std::int64_t>(BlockScan::kMaxBytes))
        return false;
    at.treatment = Treatment::Nothing;
    next = static_cast<std::size_t>(target - head_);
    return true;
}

bool LoopScan::condition_known(unsigned condition, bool& taken) const {
    if (!left_.known() || left_.symbol != right_.symbol)
        return false;
    const auto a = left_.offset;
    const auto b = right_.offset;
    const auto x = static_cast<std::uint64_t>(a);
    const auto y = static_cast<std::uint64_t>(b);
    bool result = false;
    switch (condition >> 1) {
    case 1: result = x < y; break;
    case 2: result = x == y; break;
    case 3: result = x <= y; break;
    case 6: result = a < b; break;
    case 7: result = a <= b; break;
    default: return false;
    }
    if (!left_.is_number() && condition >> 1 != 2)
        return false;
    taken = result != ((condition & 1) != 0);
    return true;
}

bool LoopScan::access(ScannedInstruction& at) {
    const Instruction& in = at.in;
    if (in.address_size != 8 || in.displacement_size == 8 || is_locked(in))
        return false;
    LoopGroup wanted;
    wanted.segment = in.memory_segment >= Fs ? in.memory_segment : std::uint8_t{0};
    std::int64_t offset = in.displacement;
    Shift& shift = shifts_.at(at.index);
    const auto add = [&](std::uint8_t reg, std::uint8_t scale) {
        const Value value = value_.at(reg);
        offset += value.offset * scale;
        if (value.is_number())
            return true;
        if (!value.known() || value.offset < -kMaxOffset || value.offset > kMaxOffset)
            return false;
        const bool as_base = wanted.base == kNoRegister && scale == 1;
        if (!as_base && (wanted.index != kNoRegister || value.symbol == kPage))
            return false;
        (as_base ? wanted.base : wanted.index) = value.symbol == kPage ? kRip : value.symbol;
        if (!as_base)
            wanted.scale = scale;
        return true;
    };
    if (in.memory_base == kRip) {
        wanted.base = kRip;
        offset += at.page_offset + in.length;
    } else if (in.memory_base != kNoRegister && !add(in.memory_base, 1)) {
        return false;
    }
    if (in.memory_index != kNoRegister && !add(in.memory_index, in.memory_scale))
        return false;
    const std::int64_t most = wanted.base == kNoRegister ? INT32_MAX - 4096 : kMaxOffset;
    if (offset < -most || offset > most)
        return false;
    const auto note = [this](std::uint8_t reg, std::int64_t& by, bool& lost) {
        if (reg < 16) {
            by = value_.at(reg).offset;
            lost = value_.at(reg).symbol != reg;
        }
    };
    note(wanted.base, shift.base, shift.base_lost);
    note(wanted.index, shift.index, shift.index_lost);
    return join(at, wanted, static_cast<std::int32_t>(offset));
}

bool LoopScan::join(ScannedInstruction& at, const LoopGroup& wanted, std::int32_t offset) {
    LoopPlan& plan = out_.loop;
    const std::int32_t end = offset + at.in.memory_size;
    LoopGroup* group = nullptr;
    for (std::size_t i = 0; i < plan.group_count; ++i) {
        LoopGroup& other = plan.groups.at(i);
        if (other.base == wanted.base && other.index == wanted.index &&
            other.scale == wanted.scale && other.segment == wanted.segment &&
            std::max(other.high, end) - std::min(other.low, offset) <= kMaxRange)
            group = &other;
    }
    if (group == nullptr) {
        if (plan.group_count == LoopPlan::kMaxGroups)
            return false;
        group = &plan.groups.at(plan.group_count++);
        *group = wanted;
        group->low = offset;
        group->high = end;
    }
    group->low = std::min(group->low, offset);
    group->high = std::max(group->high, end);
    group->writes |= at.in.writes_memory();
    ++group->accesses;
    at.loop_access = {static_cast<std::uint8_t>(group - plan.groups.data()), offset};
    return true;
}

Value LoopScan::source(const Operand& operand, const Instruction& in) const {
    if (operand.kind == OperandKind::Immediate)
        return {kNumber, static_cast<std::int64_t>(in.immediate)};
    return is_register(operand) ? value_.at(operand.reg) : Value{};
}

Value LoopScan::address_of(const ScannedInstruction& at) const {
    const Instruction& in = at.in;
    if (in.memory_base == kRip)
        return {kPage, in.displacement + at.page_offset + in.length};
    Value sum{kNumber, in.displacement};
    const auto add = [&](std::uint8_t reg, std::int64_t scale) {
        if (reg == kNoRegister)
            return;
        const Value value = value_.at(reg);
        if (value.is_number())
            sum.offset += value.offset * scale;
        else if (sum.is_number() && scale == 1)
            sum = {value.symbol, sum.offset + value.offset};
        else
            sum = {};
    };
    add(in.memory_base, 1);
    if (sum.known())
        add(in.memory_index, in.memory_scale);
    return sum;
}

/// What the first operand, a register, is afterwards.
Value LoopScan::result_of(const ScannedInstruction& at) const {
    const Instruction& in = at.in;
    const Operand& to = in.operands[0];
    const Value now = value_.at(to.reg);
    const Value from = source(in.operands[1], in);
    const bool same = is_register(in.operands[1]) && in.operands[1].reg == to.reg;
    if (to.size >= 4 && same && (in.op == Op::Xor || in.op == Op::Sub))
        return {kNumber, 0};
    if (to.size == 4 && in.op == Op::Mov && in.operands[1].kind == OperandKind::Immediate)
        return {kNumber, static_cast<std::int64_t>(in.immediate & 0xffff'ffff)};
    if (to.size != 8)
        return {};
    if (in.op == Op::Lea)
        return in.address_size == 8 ? address_of(at) : Value{};
    switch (in.op) {
    case Op::Mov: return from;
    case Op::Inc: return {now.symbol, now.offset + 1};
    case Op::Dec: return {now.symbol, now.offset - 1};
    case Op::Add:
        if (from.is_number())
            return {now.symbol, now.offset + from.offset};
        return now.is_number() ? Value{from.symbol, from.offset + now.offset} : Value{};
    case Op::Sub: return from.is_number() ? Value{now.symbol, now.offset - from.offset} : Value{};
    default: return {};
    }
}

void LoopScan::execute(const ScannedInstruction& at) {
    const Instruction& in = at.in;
    if (at.treatment == Treatment::Nothing)
        return;
    compare(in);
    Value result;
    const bool is_one = is_register(in.operands[0]) && in.operands[0].access != Access::Read;
    if (is_one)
        result = result_of(at);
    if (result.known() && (result.offset < INT32_MIN || result.offset > INT32_MAX))
        result = {};
    for (std::uint8_t reg = 0; reg < 16; ++reg)
        if ((in.registers_written >> reg & 1) != 0)
            value_.at(reg) = is_one && in.operands[0].reg == reg ? result : Value{};
}

void LoopScan::compare(const Instruction& in) {
    if (!writes_flags(in))
        return;
    left_ = right_ = {};
    if (in.op == Op::Cmp && is_register(in.operands[0]) && in.operands[0].size == 8) {
        left_ = value_.at(in.operands[0].reg);
        right_ = source(in.operands[1], in);
    }
}

bool LoopScan::finish_group(LoopGroup& group) {
    std::int64_t base = 0;
    std::int64_t index = 0;
    if (group.base < 16 && !step_of(group.base, base))
        return false;
    if (group.index < 16 && !step_of(group.index, index))
        return false;
    if (std::abs(base) > kMaxStep || std::abs(index) > kMaxStep)
        return false;
    group.base_stays = base == 0;
    group.index_stays = index == 0;
    group.step = static_cast<std::int32_t>(base + index * group.scale);
    if (std::abs(group.step) > kMaxStep)
        return false;
    // Registers without a home are loaded into scratch registers, of which there are two.
    const auto slot = [](std::uint8_t reg) { return reg < 16 && in_slot(reg); };
    if (!group.base_stays && !group.index_stays && (slot(group.base) || slot(group.index)))
        return false;
    return !(slot(group.index) && group.scale != 1 && group.index_stays);
}

bool LoopScan::finish_access(ScannedInstruction& at) {
    if (at.loop_access.group == LoopAccess::kNone)
        return true;
    const LoopGroup& group = out_.loop.groups.at(at.loop_access.group);
    const Shift& shift = shifts_.at(at.index);
    std::int64_t displacement = at.loop_access.displacement;
    if (!group.base_stays)
        displacement -= shift.base;
    if (!group.index_stays)
        displacement -= shift.index * group.scale;
    at.loop_access.displacement = static_cast<std::int32_t>(displacement);
    return displacement >= INT32_MIN && displacement <= INT32_MAX &&
           !(shift.base_lost && !group.base_stays) && !(shift.index_lost && !group.index_stays);
}

bool LoopScan::choose_counter() {
    LoopPlan& plan = out_.loop;
    int best = 0;
    for (std::uint8_t reg = 0; reg < 16; ++reg) {
        std::int64_t step = 0;
        if (!step_of(reg, step) || step == 0 || std::abs(step) > kMaxOffset)
            continue;
        const int worth = in_slot(reg) ? 1 : 2;
        if (worth <= best)
            continue;
        best = worth;
        plan.counter = reg;
        plan.step = static_cast<std::int32_t>(step);
    }
    return best != 0;
}

/// No instruction needs a scratch register, but for loading one from the frame.
bool LoopScan::leaves_scratch() const {
    const LoopPlan& plan = out_.loop;
    for (std::size_t i = 0; i < plan.group_count; ++i) {
        const LoopGroup& group = plan.groups.at(i);
        const bool base = group.base != kNoRegister && !group.base_stays;
        const bool index = group.index != kNoRegister && !group.index_stays;
        if ((base && index) || (base && in_slot(group.base)) || (index && in_slot(group.index)))
            return false;
    }
    for (std::size_t i = 0; i < out_.count; ++i) {
        const auto& at = out_.list.at(i);
        const bool other = at.treatment == Treatment::Lea && at.in.operand_size == 2;
        if (other || (at.in.type == InstructionClass::X87 && at.treatment == Treatment::Generic))
            return false;
        for (const Operand& operand : at.in.operands)
            if (operand.kind == OperandKind::GprHigh ||
                (operand.kind == OperandKind::Gpr && in_slot(operand.reg)))
                return false;
        if (at.treatment == Treatment::Lea)
            for (const std::uint8_t reg : {at.in.memory_base, at.in.memory_index})
                if (reg < 16 && in_slot(reg))
                    return false;
    }
    return !in_slot(plan.counter);
}

/// One of the scratch registers has to stay free where the frame holds more.
void LoopScan::choose_hosts() {
    LoopPlan& plan = out_.loop;
    if (!leaves_scratch())
        return;
    const auto end = plan.groups.begin() + static_cast<std::ptrdiff_t>(plan.group_count);
    const auto most =
        std::max_element(plan.groups.begin(), end, [](const LoopGroup& a, const LoopGroup& b) {
            return a.accesses < b.accesses;
        });
    most->host = kScratch1;
    if (plan.group_count == 2)
        plan.groups.at(most == plan.groups.begin() ? 1 : 0).host = kScratch0;
}

/// New ones are made before an instruction reads them, or may stop at a host signal.
bool LoopScan::flags_unseen() const {
    std::uint16_t old = kFlagBits;
    for (std::size_t i = 0; i < out_.count; ++i) {
        const auto& at = out_.list.at(i);
        const Instruction& in = at.in;
        if (at.treatment == Treatment::Lea || at.treatment == Treatment::Nothing)
            continue;
        if (at.treatment != Treatment::Generic || may_signal(in) || (in.flags_read & old) != 0)
            return false;
        if (in.has(attribute::kFlagsConditional))
            continue;
        std::uint16_t made = in.flags_written;
        if (keeps_undefined_flags(in.op))
            made = static_cast<std::uint16_t>(made & ~in.flags_undefined);
        old = static_cast<std::uint16_t>(old & ~made);
        if (old == 0)
            return true;
    }
    return false;
}

bool LoopScan::finish() {
    LoopPlan& plan = out_.loop;
    if (plan.group_count == 0)
        return false;
    for (std::size_t i = 0; i < plan.group_count; ++i)
        if (!finish_group(plan.groups.at(i)))
            return false;
    for (std::size_t i = 0; i < out_.count; ++i)
        if (!finish_access(out_.list.at(i)))
            return false;
    if (!choose_counter())
        return false;
    // Where a check fails the variant of this block goes on, which must be able to take the flags.
    const bool variant_takes_made = wanted_flags(out_) == translator::FlagsWanted::InSlot;
    out_.flags_wanted = translator::FlagsWanted::InSlot;
    out_.dead_count = 0;
    if (variant_takes_made)
        find_dead_flags(out_);
    plan.flags_unseen = flags_unseen();
    choose_hosts();
    plan.active = true;
    out_.lending_count = 0;
    return plan.flags_unseen || out_.dead_count != 0;
}

} // namespace

bool scan_loop(BlockScan& out, const CodeBytes& code, std::uint16_t page_offset, std::uint32_t mode,
               const FeatureSet& features, const description::Tuning& tuning,
               const BlockFinder& blocks) {
    if ((mode & (mode::kCode32 | mode::kCount | mode::kEachChecked)) != 0)
        return false;
    const std::size_t available = std::min<std::size_t>(code.first_count, BlockScan::kMaxBytes);
    std::memcpy(out.bytes.data(), code.first, available);
    out.mode = mode;
    out.tuning = tuning;
    out.count = 0;
    out.end_offset = 0;
    out.groups = {};
    out.base_count = 0;
    out.loop = {};
    LoopScan scan{out, page_offset, features};
    return scan.run(available) && scan.leaves_seldom(blocks);
}

} // namespace doppel::cpu::x86::frontend
