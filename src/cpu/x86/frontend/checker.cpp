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

constexpr std::uint32_t kEverything = mode::kX87 | mode::kSse | mode::kAvx | mode::kCount;
constexpr std::uint64_t kMaxReports = 20;

/// Linear; in 64-bit code only FS and GS have a base.
std::uint64_t operand_address(const CpuState& state, const Instruction& in, bool code64) {
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
    if (in.memory_segment >= Fs)
        address += state.segment[in.memory_segment].base;
    return code64 ? address : address & 0xffff'ffff;
}

/// A part of an XSAVE area; zero where XSTATE_BV says that it is in its initial state.
struct Component {
    std::uint8_t bit;
    std::size_t offset, bytes;
    const char* name;
};
constexpr Component kComponents[] = {
    {0, 4, 1, "the x87 tags"},
    {0, 6, 18, "the x87 pointers"},
    {0, 32, 128, "an x87 register"},
    {1, 160, 256, "an XMM register"},
    {2, 576, 256, "the upper half of a YMM register"},
};

bool in_use(const XsaveArea& area, unsigned bit) {
    return (std::to_integer<unsigned>(area.bytes[512]) >> bit & 1) != 0;
}

bool same(const XsaveArea& a, const XsaveArea& b, const Component& part) {
    if (in_use(a, part.bit) == in_use(b, part.bit))
        return !in_use(a, part.bit) ||
               std::memcmp(&a.bytes[part.offset], &b.bytes[part.offset], part.bytes) == 0;
    for (std::size_t i = part.offset; i < part.offset + part.bytes; ++i)
        if ((in_use(a, part.bit) ? a.bytes[i] : std::byte{}) !=
            (in_use(b, part.bit) ? b.bytes[i] : std::byte{}))
            return false;
    return true;
}

/// FCW and FSW: 037FH and 0 initially.
std::uint32_t x87_control(const XsaveArea& area) {
    std::uint32_t both = 0x37f;
    if (in_use(area, 0))
        std::memcpy(&both, area.bytes.data(), 4);
    return both;
}

bool same(const Segment& a, const Segment& b) {
    return a.base == b.base && a.limit == b.limit && a.selector == b.selector &&
           a.access == b.access;
}

} // namespace

Checker::Checker(SystemContext& cx, Interpreter& interpreter)
    : cx_{cx}, interpreter_{interpreter} {}

/// The access does not come about.
bool Checker::faults(std::uint64_t linear, bool write) {
    Translation to;
    return !translate(cx_, linear, write ? AccessType::Write : AccessType::Read,
                      data_privilege(cx_), to);
}

/// Remembers what is there. False: the interpreter executes the access for both engines.
bool Checker::note_access(std::uint64_t linear, std::uint64_t bytes, bool write) {
    while (bytes != 0) {
        if (!cx_.code64())
            linear &= 0xffff'ffff;
        memory::Gpa gpa;
        if (!is_canonical(linear) || !translate_quietly(cx_, linear, gpa))
            return true; // it will fault
        const RamView::Region* const region = cx_.ram.find(gpa.value);
        if (region == nullptr)
            return faults(linear, write);
        const std::uint64_t offset = gpa.value - region->base;
        const auto state = region->states[offset >> 12].load(std::memory_order_acquire);
        if (write && (state & memory::GuestMemory::kPageCode) != 0)
            return faults(linear, write); // it would end the block we are about to enter
        std::byte* const host = region->host + offset;
        const std::uint64_t here = std::min(bytes, 4096 - (linear & 0xfff));
        for (std::uint64_t i = 0; i < here && write; ++i)
            overwritten_.push_back({host + i, host[i], host[i]});
        linear += here;
        bytes -= here;
    }
    return true;
}

bool Checker::note_accesses(const Known& known) {
    const CpuState& state = cx_.state;
    const Instruction& in = known.in;
    if (in.has_memory() && in.memory_access != Access::Address &&
        !note_access(operand_address(state, in, cx_.code64()), in.memory_size, in.writes_memory()))
        return false;
    const std::uint8_t word = word_bytes(known.mode);
    switch (known.treatment) {
    case Treatment::Push:
    case Treatment::PushMemory:
    case Treatment::PushSegment:
    case Treatment::Pushf:
    case Treatment::Call:
    case Treatment::IndirectCall: return note_access(state.gpr[Rsp] - word, word, true);
    case Treatment::Pop:
    case Treatment::Popf:
    case Treatment::Return: return note_access(state.gpr[Rsp], word, false);
    case Treatment::Leave: return note_access(state.gpr[Rbp], word, false);
    case Treatment::String: return note_string(in);
    default: return true;
    }
}

bool Checker::note_string(const Instruction& in) {
    const CpuState& state = cx_.state;
    const bool writes = in.op == Op::Movs || in.op == Op::Stos;
    const bool reads = in.op != Op::Scas && in.op != Op::Stos;
    return (!reads || note_access(state.gpr[Rsi], in.operand_size, false)) &&
           (in.op == Op::Lods || note_access(state.gpr[Rdi], in.operand_size, writes));
}

/// The instruction at RIP; nullptr when it cannot be fetched.
const Checker::Known* Checker::decoded() {
    std::uint8_t bytes[15] = {};
    std::uint32_t got = 0;
    const std::uint64_t rip = cx_.state.rip;
    const std::uint32_t bits =
        kEverything | (cx_.state.cpl == 3 ? mode::kUser : 0) | (cx_.code64() ? 0 : mode::kCode32);
    if (!fetch_linear(cx_, rip, bytes, 15, got))
        return nullptr;
    Known& known = known_[(rip ^ rip >> 13) % kKnown];
    if (known.in.length != 0 && known.mode == bits &&
        known.in.length <= got && // one in two pages is decoded each time
        std::memcmp(known.bytes.data(), bytes, known.in.length) == 0)
        return &known;
    known.in.length = 0;
    DecodeStatus status = decode({bytes, got}, code_size(bits), known.in);
    std::uint32_t more = 0;
    if (status == DecodeStatus::NeedMoreBytes && got < sizeof bytes && // in two pages
        fetch_linear(cx_, rip + got, bytes + got, 15 - got, more))
        status = decode({bytes, got + more}, code_size(bits), known.in);
    if (status != DecodeStatus::Ok) {
        known.in.length = 0;
        return nullptr;
    }
    std::memcpy(known.bytes.data(), bytes, sizeof bytes);
    known.mode = bits;
    known.treatment = classify(known.in, bits, cx_.features);
    return &known;
}

/// One instruction of the interpreter. False: the block ends here.
bool Checker::step() {
    CpuState& state = cx_.state;
    const Known* const known = decoded();
    if (known == nullptr || known->treatment == Treatment::Interpret)
        return false;
    const Instruction& in = known->in;
    const std::size_t first = overwritten_.size();
    if (!note_accesses(*known)) {
        overwritten_.resize(first);
        return false;
    }
    code_.insert(code_.end(), known->bytes.begin(), known->bytes.begin() + in.length);
    const std::uint64_t next = state.rip + in.length;
    const StepResult result = interpreter_.step();
    for (std::size_t i = first; i < overwritten_.size(); ++i)
        overwritten_[i].new_value = *overwritten_[i].host;
    if (!in.has(attribute::kFlagsConditional))
        undefined_ = static_cast<std::uint16_t>(undefined_ & ~in.flags_written);
    undefined_ = static_cast<std::uint16_t>(undefined_ | in.flags_undefined);
    steps_.push_back({state.gpr, state.rip, state.rflags, state.cr2, state.cpl, undefined_,
                      overwritten_.size(), state.segment, state.kernel_gs_base});
    return result == StepResult::Continue && state.rip == next;
}

void Checker::before(std::uint32_t instructions) {
    if (known_.empty())
        known_.resize(kKnown);
    start_ = cx_.state;
    const std::uint32_t changes = cx_.changes;
    const EventLog events = cx_.events; // what follows is a rehearsal
    steps_.clear();
    overwritten_.clear();
    code_.clear();
    undefined_ = 0;
    while (steps_.size() < instructions && step()) {
    }
    for (std::size_t i = overwritten_.size(); i-- > 0;)
        *overwritten_[i].host = overwritten_[i].old_value;
    end_vectors_ = cx_.state.xsave;
    cx_.state = start_;
    cx_.changes = changes;
    cx_.events = events;
}

std::string Checker::compare_vectors() const {
    const XsaveArea& mine = cx_.state.xsave;
    for (const Component& part : kComponents)
        if (!same(mine, end_vectors_, part))
            return fmt::format("{} differs", part.name);
    if (x87_control(mine) != x87_control(end_vectors_))
        return fmt::format("x87 control and status are {:#x}, should be {:#x}", x87_control(mine),
                           x87_control(end_vectors_));
    if (std::memcmp(&mine.bytes[24], &end_vectors_.bytes[24], 4) != 0)
        return "MXCSR differs";
    return {};
}

std::string Checker::compare(const Step& theirs, bool last) const {
    const CpuState& mine = cx_.state;
    if (mine.rip != theirs.rip)
        return fmt::format("RIP is {:#x}, should be {:#x}", mine.rip, theirs.rip);
    for (unsigned i = 0; i < 16; ++i)
        if (mine.gpr[i] != theirs.gpr[i])
            return fmt::format("register {} is {:#x}, should be {:#x}", i, mine.gpr[i],
                               theirs.gpr[i]);
    if (((mine.rflags ^ theirs.rflags) & ~std::uint64_t{theirs.undefined}) != 0)
        return fmt::format("rflags is {:#x}, should be {:#x}", mine.rflags, theirs.rflags);
    if (mine.cr2 != theirs.cr2 || mine.cpl != theirs.cpl)
        return fmt::format("cr2 is {:#x}, should be {:#x}, CPL is {}, should be {}", mine.cr2,
                           theirs.cr2, mine.cpl, theirs.cpl);
    for (unsigned i = 0; i < kSegments; ++i)
        if (!same(mine.segment[i], theirs.segment[i]))
            return fmt::format("segment register {} is {:#x} at {:#x}, should be {:#x} at {:#x}", i,
                               mine.segment[i].selector, mine.segment[i].base,
                               theirs.segment[i].selector, theirs.segment[i].base);
    if (mine.kernel_gs_base != theirs.kernel_gs_base)
        return fmt::format("the kernel's GS base is {:#x}, should be {:#x}", mine.kernel_gs_base,
                           theirs.kernel_gs_base);
    for (std::size_t i = 0; i < theirs.overwritten; ++i) {
        bool later = false; // the same byte is written once more
        for (std::size_t n = i + 1; n < theirs.overwritten && !later; ++n)
            later = overwritten_[n].host == overwritten_[i].host;
        if (!later && *overwritten_[i].host != overwritten_[i].new_value)
            return fmt::format("memory byte {} of {} differs", i, theirs.overwritten);
    }
    return last ? compare_vectors() : std::string{};
}

void Checker::report(const std::string& what, std::uint64_t executed) {
    if (++differences_ > kMaxReports)
        return;
    std::string code;
    for (const auto byte : code_)
        code += fmt::format("{:02x}", byte);
    std::string registers;
    for (unsigned i = 0; i < 16; ++i)
        registers += fmt::format(" {:#x}", start_.gpr[i]);
    base::log_error("check: block at {:#x}, {} instructions: {}\n  code {}\n  registers{} "
                    "flags {:#x}",
                    start_.rip, executed, what, code, registers, start_.rflags);
}

void Checker::after(std::uint64_t executed) {
    if (executed == 0)
        return; // it has yet to begin
    ++compared_;
    if (executed > steps_.size()) {
        report(fmt::format("executed more than the interpreter's {}", steps_.size()), executed);
        return;
    }
    const std::string what = compare(steps_[executed - 1], executed == steps_.size());
    if (!what.empty())
        report(what, executed);
}

} // namespace doppel::cpu::x86::frontend
