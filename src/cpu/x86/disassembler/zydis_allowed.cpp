// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/disassembler/zydis_allowed.hpp"

#include <string>

namespace doppel::cpu::x86 {
namespace {

/// Instruction sets that guests are never offered: undefined for us.
bool is_hidden(const ZydisDecodedInstruction& theirs) {
    constexpr std::string_view kSets[] = {
        "AMD3DNOW",  "AMD_INVLPGB", "AMX_",     "AVX512", "AVX_VNNI",  "CET",
        "CLZERO",    "ENQCMD",      "FMA4",     "HRESET", "KEYLOCKER", "KNC",
        "LWP",       "MCOMMIT",     "MONITORX", "MOVDIR", "PADLOCK",   "PCONFIG",
        "PKU",       "PT",          "RDPRU",    "RTM",    "SERIALIZE", "SGX",
        "SMX",       "SNP",         "SSE4A",    "SVM",    "TBM",       "TDX",
        "TSX_LDTRK", "UINTR",       "VMFUNC",   "VTX",    "WAITPKG",   "XOP",
    };
    const std::string_view name = ZydisISASetGetString(theirs.meta.isa_set);
    for (const auto set : kSets)
        if (name.starts_with(set))
            return true;
    return false;
}

bool is_ud(ZydisMnemonic mnemonic) {
    return mnemonic == ZYDIS_MNEMONIC_UD0 || mnemonic == ZYDIS_MNEMONIC_UD1 ||
           mnemonic == ZYDIS_MNEMONIC_UD2;
}

/// Which of two faults an instruction that deserves both gets is not architectural: an undefined
/// one that is cut off or too long.
bool is_fault(DecodeStatus status) { return status != DecodeStatus::Ok; }

bool status_allowed(const Disagreement& d) {
    if (is_fault(d.our_status) && is_fault(d.their_status))
        return true;
    if (d.our_status == DecodeStatus::Undefined && d.theirs != nullptr)
        return is_hidden(*d.theirs) ||
               is_ud(d.theirs->mnemonic) || // the status says it
                                            // SDM Vol. 2: VPINSRQ, VPEXTRQ are "I" outside 64-bit
                                            // code; AMD Zen 5 raises #UD.
               ((d.theirs->mnemonic == ZYDIS_MNEMONIC_VPINSRD ||
                 d.theirs->mnemonic == ZYDIS_MNEMONIC_VPEXTRD) &&
                d.code_size != CodeSize::Bits64);
    return false;
}

bool flags_allowed(const Disagreement& d) {
    switch (d.ours->op) {
    case Op::Cmps: // REP tests ZF after it has written it: no input
    case Op::Scas: return d.field == "flags read";
    case Op::Syscall:  // SDM Vol. 2: R11 = RFLAGS, then masked by IA32_FMASK
    case Op::Sysenter: // delivery clears more than IF
    case Op::Int:
    case Op::Int1:
    case Op::Int3:
    case Op::Into: return true;
    case Op::Vmcall: // VMX would clear them; KVM's hypercall leaves RFLAGS alone
        return true;
    case Op::Bextr: // SDM Vol. 2: OF and CF are cleared
    case Op::Sbb:   // SDM Vol. 2: AF is set according to the result
        return d.field == "flags undefined";
    case Op::Rol: // a constant count is known: 0 changes nothing, 1 defines OF
    case Op::Ror:
    case Op::Rcl:
    case Op::Rcr:
    case Op::Shl:
    case Op::Shr:
    case Op::Sar:
    case Op::Shld:
    case Op::Shrd: return d.ours->flags_written == 0 || d.field == "flags undefined";
    case Op::Simd: // VPTEST, VTESTPS/PD: SDM Vol. 2 clears OF, AF, PF, SF as PTEST does
        return d.ours->is_vex() && d.field == "flags written";
    default: return false;
    }
}

bool size_allowed(const Disagreement& d) {
    switch (d.ours->op) {
    case Op::Xlat: // bytes, whatever the mode's operand size
    case Op::Aaa:
    case Op::Aas:
    case Op::Aam:
    case Op::Aad:
    case Op::Daa:
    case Op::Das:
    case Op::Salc:
    case Op::Lahf:
    case Op::Sahf: return true;
    case Op::Ins: // SDM Vol. 2: there is no 64-bit I/O
    case Op::Outs: return d.ours->operand_size == 4;
    case Op::Nop: // nothing is operated on
    case Op::Syscall:
    case Op::Clwb:
    case Op::Clflushopt:
    case Op::Lar: // sizes of a register of which 16 bits are used
    case Op::Lsl: return true;
    case Op::Movsx: // MOVSXD r16, r/m: AMD Zen 5 reads 32 bits from memory, Zydis too, but not here
        return d.ours->map == OpcodeMap::Primary && d.ours->operand_size == 2;
    case Op::Simd: // MOVMSKPS/PD with REX.W: the upper half of the register becomes 0 either way
        return d.ours->map == OpcodeMap::Map0F && d.ours->opcode == 0x50;
    default: return false;
    }
}

bool registers_allowed(const Disagreement& d) {
    switch (d.ours->op) {
    case Op::Xchg: // F3 41 90: Zydis calls it PAUSE; AMD Zen 5 exchanges rax and r8
        return d.ours->rep() && d.ours->opcode == 0x90;
    case Op::Cmps: // Zydis does not list the index registers' steps
    case Op::Scas:
    case Op::Movs:
    case Op::Stos:
    case Op::Lods:
    case Op::Ins:
    case Op::Outs: return true;
    case Op::Vmcall: // what a hypercall reads and writes is the hypervisor's: all
    case Op::Vmmcall:
    case Op::Rsm: return true;
    default: return false;
    }
}

/// SDM Vol. 2 table 2-21 (exception class 4): legacy instructions without alignment check.
bool unaligned_by_table(const Instruction& in) {
    if (in.is_vex() || in.has(attribute::kAligned))
        return false;
    if (in.map == OpcodeMap::Map0F3A) // PCMPESTRM .. PCMPISTRI
        return in.opcode >= 0x60 && in.opcode <= 0x63;
    const bool movups = in.opcode == 0x10 || in.opcode == 0x11;
    const bool movdqu = (in.opcode == 0x6f || in.opcode == 0x7f) && in.rep();
    return movups || movdqu || in.opcode == 0xf0 || in.opcode == 0xf7; // LDDQU, MASKMOVDQU
}

} // namespace

bool is_hidden_instruction(std::span<const std::uint8_t> bytes, CodeSize code_size) {
    const bool long_mode = code_size == CodeSize::Bits64;
    ZydisDecoder decoder;
    ZydisDecoderInit(&decoder,
                     long_mode ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32,
                     long_mode ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32);
    ZydisDecodedInstruction theirs;
    return ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder, nullptr, bytes.data(), bytes.size(),
                                                      &theirs)) &&
           is_hidden(theirs);
}

bool is_allowed(const Disagreement& d) {
    if (d.field == "status")
        return status_allowed(d);
    if (d.field.starts_with("flags"))
        return flags_allowed(d);
    if (d.field.starts_with("registers"))
        return registers_allowed(d);
    if (d.field == "operand size")
        return size_allowed(d);
    if (d.field == "alignment")
        return unaligned_by_table(*d.ours);
    if (d.field == "MXCSR") // they move it: no exceptions, so in another class
        return d.ours->op == Op::Ldmxcsr || d.ours->op == Op::Stmxcsr;
    if (d.field == "operation")
        return d.ours->op == Op::Xchg && d.ours->opcode == 0x90; // F3 41 90, see above
    // Zydis 4.0 sees a base in SIB with mod 0, base 5, REX.B and 32-bit addresses; SDM Vol. 2 table
    // 2-3 and AMD Zen 5: none.
    if (d.field == "base")
        return d.code_size == CodeSize::Bits64 && d.ours->address_size == 4 &&
               d.ours->modrm_mod() == 0 && d.ours->modrm_rm() == 4 && (d.ours->rex & 1) != 0;
    return false;
}

} // namespace doppel::cpu::x86
