// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/interpreter/gate.hpp"

namespace doppel::cpu::x86::interpreter {
namespace {

bool has_feature(const SystemContext& cx, const Instruction& in) {
    return cx.features.has(in.feature) || in.feature == IsaFeature::None || in.op == Op::Tzcnt ||
           in.op == Op::Lzcnt; // these are BSF and BSR then
}

/// CPL > 0: #UD for a few, #GP for the rest.
bool refuse_privileged(SystemContext& cx, Op op) {
    switch (op) {
    case Op::Clac:
    case Op::Stac:
    case Op::Monitor:
    case Op::Mwait: return cx.ud();
    default: return cx.gp(0);
    }
}

bool pass_vector_gate(SystemContext& cx, const Instruction& in) {
    const std::uint64_t cr0 = cx.state.cr0;
    if (in.op == Op::Fxsave || in.op == Op::Fxrstor) // these look for themselves
        return true;
    switch (in.type) {
    case InstructionClass::X87:
        if (in.op == Op::Wait)
            return (cr0 & (CR0_MP | CR0_TS)) != (CR0_MP | CR0_TS) || cx.raise(Vector::NM);
        return (cr0 & (CR0_EM | CR0_TS)) == 0 || cx.raise(Vector::NM);
    case InstructionClass::Mmx:
        if ((cr0 & CR0_EM) != 0)
            return cx.ud();
        break;
    case InstructionClass::Sse:
        if ((cr0 & CR0_EM) != 0 || (cx.state.cr4 & CR4_OSFXSR) == 0)
            return cx.ud();
        break;
    case InstructionClass::Avx:
        if ((cx.state.cr4 & CR4_OSXSAVE) == 0 || (cx.state.xcr0 & 6) != 6)
            return cx.ud();
        break;
    default: return true;
    }
    return (cr0 & CR0_TS) == 0 || cx.raise(Vector::NM);
}

} // namespace

bool pass_gate(SystemContext& cx, const Instruction& in) {
    if (!has_feature(cx, in))
        return cx.ud();
    if (in.has(attribute::kProtectedOnly) && cx.real_or_v86())
        return cx.ud();
    if (in.has(attribute::kPrivileged) && cx.state.cpl != 0)
        return refuse_privileged(cx, in.op);
    return pass_vector_gate(cx, in);
}

} // namespace doppel::cpu::x86::interpreter
