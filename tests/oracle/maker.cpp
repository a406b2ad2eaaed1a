// SPDX-License-Identifier: Apache-2.0
#include "tests/oracle/maker.hpp"

#include "cpu/x86/cpu_state.hpp"
#include "tests/oracle/operand.hpp"

namespace doppel::oracle {

using namespace cpu::x86;

namespace {

constexpr std::uint8_t kBreakpoint = 3; // the case ran to its end
constexpr std::uint8_t kBoundRange = 5, kStackFault = 12, kGeneralProtection = 13, kPageFault = 14,
                       kAlignmentCheck = 17, kSimdException = 19;
constexpr std::uint16_t kFswErrorSummary = 0x80;

bool host_is_amd() {
    static const bool amd = __builtin_cpu_is("amd") != 0;
    return amd;
}

bool is_rotation(Op op) { return op == Op::Rol || op == Op::Ror || op == Op::Rcl || op == Op::Rcr; }

/// An unmasked exception keeps Intel's x87 from storing at all, so that nothing can fault.
bool store_given_up(const Instruction& in, const Outcome& host, const Outcome& guest) {
    return in.type == InstructionClass::X87 && in.writes_memory() && host.vector == kBreakpoint &&
           guest.vector != kBreakpoint && (host.vectors.fsw & kFswErrorSummary) != 0;
}

/// Beyond 4 GiB an operand goes on at 0 for Intel's CPUs and meets #AC or #PF; for AMD's it breaks
/// the limit: #GP or #SS. Where strings and bit strings are is not computed again here.
bool string_wraps(const Case& test, const Instruction& in, const Outcome& host,
                  const Outcome& guest) {
    const bool bit_string =
        in.op == Op::Bt || in.op == Op::Bts || in.op == Op::Btr || in.op == Op::Btc;
    return test.mode == Mode::Bits32 && (in.type == InstructionClass::String || bit_string) &&
           (host.vector == kPageFault || host.vector == kAlignmentCheck) &&
           (guest.vector == kGeneralProtection || guest.vector == kStackFault);
}

/// BOUND's lower bound is violated, and its upper one cannot be read.
bool bound_read_first(const Instruction& in, const Outcome& host) {
    return in.op == Op::Bound && host.vector == kBoundRange;
}

/// Alignment of an x87 environment with 16-bit fields (2 for Intel's CPUs, 4 for AMD's), and
/// whether that comes before the segment's limit.
bool environment_aligned(const Instruction& in, const Outcome& host, const Outcome& guest) {
    const bool environment =
        in.op == Op::Fldenv || in.op == Op::Fnstenv || in.op == Op::Frstor || in.op == Op::Fnsave;
    return environment && (host.vector == kAlignmentCheck || guest.vector == kAlignmentCheck);
}

/// A conversion that stores its result: its own exceptions come first on Intel's CPUs.
bool converts_first(const Instruction& in, const Outcome& host) {
    return in.has(attribute::kMxcsr) && in.writes_memory() && host.vector == kSimdException;
}

/// REP with ecx = 0: Intel's CPUs cut off the upper half of rcx nevertheless.
bool counts_none(const Case& test, const Instruction& in) {
    return test.mode == Mode::Bits64 && in.type == InstructionClass::String &&
           in.address_size == 4 && (test.gpr[Rcx] & 0xffff'ffff) == 0;
}

/// What one maker's CPUs do not agree on either: which of two operands faults first, and whether
/// what a mask leaves out may lie beyond the segment's limit (Zen 4: yes, as the manuals say; older
/// ones, and the engines: no).
bool models_differ(const Instruction& in, const Outcome& host, const Outcome& guest) {
    const bool breaks_limit = guest.vector == kGeneralProtection || guest.vector == kStackFault;
    return (in.op == Op::Cmps && host.vector != kBreakpoint && guest.vector != kBreakpoint) ||
           (in.has(attribute::kMaskedMemory) && breaks_limit);
}

/// How far an instruction that faults has come.
void allow_for_fault(Allowance& allowed, const Case& test, const Instruction& in) {
    const bool compares = in.op == Op::Cmps || in.op == Op::Scas;
    if (in.type == InstructionClass::Mmx)
        allowed.x87 = true; // Intel: TOP and tags are those of MMX by then
    if (in.has(attribute::kMxcsr) && in.writes_memory())
        allowed.mxcsr = true; // Intel: the conversion's exceptions are noted by then
    if (in.has(attribute::kMaskedMemory))
        allowed.cr2 = area::kPage - 1; // the first byte, or the first one wanted
    if (in.has(attribute::kVsib))
        allowed.ymm = true; // elements gathered before the fault
    if (compares && (in.rep() || in.repne()))
        allowed.flags = kComparedFlags; // Intel: as before the first iteration
    if (in.type == InstructionClass::String && in.address_size == 4 && test.mode == Mode::Bits64)
        allowed.upper_halves = true; // Intel: cut off by then
    if ((in.type == InstructionClass::X87 && in.writes_memory()) || in.branch == BranchKind::Call ||
        in.branch == BranchKind::IndirectCall)
        allowed.memory = true; // ten bytes go in two pieces; the return address is pushed by then
    if (in.op == Op::Movbe && in.operand_size == 8 && (in.prefixes & prefix::kOperandSize) != 0)
        allowed.memory = true; // Skylake: what goes into the first of two pages is there by then
}

} // namespace

Allowance allowance(const Case& test, const Instruction& in, const Outcome& host,
                    const Outcome& guest) {
    Allowance allowed;
    allowed.everything = models_differ(in, host, guest);
    if (host_is_amd())
        return allowed;
    if (host.vector != kBreakpoint && guest.vector != kBreakpoint)
        allow_for_fault(allowed, test, in);
    if (store_given_up(in, host, guest) || operand_wraps(test, in) ||
        string_wraps(test, in, host, guest) || environment_aligned(in, host, guest) ||
        converts_first(in, host) ||
        (bound_read_first(in, host) && guest.vector >= kGeneralProtection))
        allowed.everything = true;
    if (counts_none(test, in))
        allowed.upper_halves = true;
    allowed.flags |= in.flags_undefined;
    if (is_rotation(in.op)) // undefined unless the count is 1
        allowed.flags |= FLAG_OF;
    if (in.op == Op::PushSegment && in.operand_size == 4)
        allowed.memory = true; // Intel: the slot's upper half stays as it was
    return allowed;
}

} // namespace doppel::oracle
