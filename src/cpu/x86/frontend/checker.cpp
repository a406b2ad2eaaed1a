// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/checker.hpp"

#include <algorithm>
#include <cstring>

#include <fmt/core.h>

#include "base/log.hpp"
#include "cpu/x86/decoder/decoder.hpp"
#include "cpu/x86/frontend/classify.hpp"
#include "cpu/x86/frontend/frame.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

constexpr std::uint32_t kEverything = mode::kX87 | mode::kSse | mode::kAvx;
constexpr std::uint64_t kMaxReports = 20;

std::uint64_t effective_address(const CpuState& state, const Instruction& in) {
    std::uint64_t address = static_cast<std::uint64_t>(in.displacement);
    if (in.memory_base == kRip)
        address += state.rip + in.length;
    else if (in.memory_base != kNoRegister)
        address += state.gpr[in.memory_base];
    if (in.memory_index != kNoRegister)
        address += state.gpr[in.memory_index] * in.memory_scale;
    if (is_bit_string(in)) { // the offset in a register reaches beyond the operand
        const std::uint64_t offset = state.gpr[in.operands[1].reg];
        address += in.operand_size == 8
                       ? static_cast<std::uint64_t>(static_cast<std::int64_t>(offset) >> 6) * 8
                       : static_cast<std::uint64_t>(static_cast<std::int32_t>(offset) >> 5) * 4;
    }
    if (in.address_size == 4)
        address &= 0xffff'ffff;
    return in.memory_segment >= Fs ? address + state.segment[in.memory_segment].base : address;
}

bool ends_trace(Treatment treatment) {
    switch (treatment) {
    case Treatment::Jump:
    case Treatment::CounterBranch:
    case Treatment::Call:
    case Treatment::IndirectJump:
    case Treatment::IndirectCall:
    case Treatment::Return: return true;
    default: return false;
    }
}

} // namespace

/// Remembers what is there. False: not RAM.
bool Checker::note_access(std::uint64_t linear, std::uint64_t bytes, bool write) {
    while (bytes != 0) {
        memory::Gpa gpa;
        if (!is_canonical(linear) || !translate_quietly(cx_, linear, gpa))
            return true; // it will fault
        std::byte* const host = cx_.ram.host(gpa.value);
        if (host == nullptr)
            return false;
        const std::uint64_t here = std::min(bytes, 4096 - (linear & 0xfff));
        for (std::uint64_t i = 0; i < here && write; ++i)
            overwritten_.push_back({host + i, host[i], host[i]});
        linear += here;
        bytes -= here;
    }
    return true;
}

bool Checker::step() {
    CpuState& state = cx_.state;
    std::uint8_t bytes[15];
    std::uint32_t got = 0;
    Instruction in;
    if (!fetch_linear(cx_, state.rip, bytes, 15, got) ||
        decode({bytes, got}, CodeSize::Bits64, in) != DecodeStatus::Ok)
        return false;
    const Treatment treatment = classify(in, kEverything, cx_.features);
    if (treatment == Treatment::Interpret)
        return false;
    code_.insert(code_.end(), bytes, bytes + in.length);
    const std::size_t first = overwritten_.size();
    if (in.has_memory() && in.memory_access != Access::Address &&
        !note_access(effective_address(state, in), in.memory_size, in.writes_memory()))
        return false;
    if ((treatment == Treatment::Push || treatment == Treatment::Call ||
         treatment == Treatment::IndirectCall) &&
        !note_access(state.gpr[Rsp] - 8, 8, true))
        return false;
    const std::uint64_t next = state.rip + in.length;
    const StepResult result = interpreter_.step();
    for (std::size_t i = first; i < overwritten_.size(); ++i)
        overwritten_[i].new_value = *overwritten_[i].host;
    if (!in.has(attribute::kFlagsConditional))
        undefined_ = static_cast<std::uint16_t>(undefined_ & ~in.flags_written);
    undefined_ = static_cast<std::uint16_t>(undefined_ | in.flags_undefined);
    steps_.push_back({state.gpr, state.rip, state.rflags, state.cr2, state.cpl, undefined_,
                      overwritten_.size()});
    return result == StepResult::Continue && state.rip == next && !ends_trace(treatment) &&
           steps_.size() < 70;
}

bool Checker::before() {
    if (user_only_ && cx_.state.cpl != 3) {
        steps_.clear();
        return false;
    }
    start_ = cx_.state;
    const std::uint32_t changes = cx_.changes;
    steps_.clear();
    overwritten_.clear();
    code_.clear();
    undefined_ = 0;
    while (step()) {
    }
    for (std::size_t i = overwritten_.size(); i-- > 0;)
        *overwritten_[i].host = overwritten_[i].old_value;
    end_vectors_ = cx_.state.xsave;
    cx_.state = start_;
    cx_.changes = changes;
    return !steps_.empty();
}

std::string Checker::compare(const Step& theirs, bool last) const {
    const CpuState& mine = cx_.state;
    for (unsigned i = 0; i < 16; ++i)
        if (mine.gpr[i] != theirs.gpr[i])
            return fmt::format("register {} is {:#x}, should be {:#x}", i, mine.gpr[i],
                               theirs.gpr[i]);
    if (((mine.rflags ^ theirs.rflags) & ~std::uint64_t{theirs.undefined}) != 0)
        return fmt::format("rflags is {:#x}, should be {:#x}", mine.rflags, theirs.rflags);
    if (mine.cr2 != theirs.cr2 || mine.cpl != theirs.cpl)
        return fmt::format("cr2 is {:#x}, should be {:#x}", mine.cr2, theirs.cr2);
    const auto* const p = mine.xsave.bytes.data();
    const auto* const q = end_vectors_.bytes.data();
    if (last && std::to_integer<int>(p[512] & q[512] & std::byte{2}) != 0 &&
        std::memcmp(p + 160, q + 160, 256) != 0)
        return "an XMM register differs";
    if (last && std::to_integer<int>(p[512] & q[512] & std::byte{4}) != 0 &&
        std::memcmp(p + 576, q + 576, 256) != 0)
        return "the upper half of a YMM register differs";
    for (std::size_t i = 0; i < theirs.overwritten; ++i) {
        bool later = false; // the same byte is written once more
        for (std::size_t n = i + 1; n < theirs.overwritten; ++n)
            later |= overwritten_[n].host == overwritten_[i].host;
        if (!later && *overwritten_[i].host != overwritten_[i].new_value)
            return fmt::format("memory byte {} of {} differs", i, theirs.overwritten);
    }
    return {};
}

void Checker::report(const std::string& what, const Step& step) {
    if (++differences_ > kMaxReports)
        return;
    std::string code;
    for (const auto byte : code_)
        code += fmt::format("{:02x}", byte);
    std::string registers;
    for (unsigned i = 0; i < 16; ++i)
        registers += fmt::format(" {:#x}", start_.gpr[i]);
    base::log_error("check: block at {:#x} to {:#x}: {}\n  code {}\n  registers{} flags {:#x}",
                    start_.rip, step.rip, what, code, registers, start_.rflags);
}

void Checker::after() {
    // From the end: a loop's head may also be passed on the way.
    for (std::size_t i = steps_.size(); i-- > 0;) {
        if (steps_[i].rip != cx_.state.rip)
            continue;
        ++compared_;
        if (const std::string what = compare(steps_[i], i + 1 == steps_.size()); !what.empty())
            report(what, steps_[i]);
        return;
    }
}

} // namespace doppel::cpu::x86::frontend
