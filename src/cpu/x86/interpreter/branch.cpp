// SPDX-License-Identifier: Apache-2.0
/// Everything that loads RIP. Far transfers are the system layer's.
#include "cpu/x86/interpreter/handlers.hpp"
#include "cpu/x86/system/far_transfer.hpp"

namespace doppel::cpu::x86::interpreter {
namespace {

/// Target of a near JMP or CALL: relative, or in a register or memory.
DOPPEL_HOT bool near_target(Execution& x, std::uint64_t& target) {
    if (x.in.operands[0].kind == OperandKind::Relative) {
        target = x.in.target(x.next);
        return true;
    }
    return read_operand(x, x.in.operands[0], target);
}

DOPPEL_HOT bool jump_if(Execution& x, bool taken) {
    return !taken || branch_to(x, x.in.target(x.next));
}

struct FarTarget {
    std::uint16_t selector;
    std::uint64_t offset;
};
DOPPEL_HOT bool far_target(Execution& x, FarTarget& target) {
    if (x.in.operands[0].kind == OperandKind::FarPointer) {
        target = {x.in.immediate2, x.in.immediate};
        return true;
    }
    const unsigned size = x.in.operand_size;
    std::uint64_t pointer[2] = {};
    auto* bytes = reinterpret_cast<std::uint8_t*>(pointer);
    if (!read_data(x.cx, memory_segment(x), effective_address(x), bytes, size + 2))
        return false;
    __builtin_memcpy(&target.selector, bytes + size, 2);
    target.offset = pointer[0] & mask_of(size);
    return true;
}

/// What the system layer did to state.rip becomes the instruction's result.
DOPPEL_HOT bool transferred(Execution& x, bool done) {
    x.next = x.cx.state.rip;
    return done;
}

/// LOOPcc: counts down in the register of the address size.
DOPPEL_HOT bool loop_while(Execution& x, bool condition) {
    const unsigned size = x.in.address_size;
    const std::uint64_t count = (gpr(x, Rcx, size) - 1) & mask_of(size);
    if (!jump_if(x, count != 0 && condition))
        return false;
    set_gpr(x, Rcx, size, count);
    return true;
}

} // namespace

bool op_jmp(Execution& x) {
    std::uint64_t target;
    return near_target(x, target) && branch_to(x, target);
}

bool op_call(Execution& x) {
    std::uint64_t target;
    const std::uint64_t back = x.next;
    return near_target(x, target) && branch_to(x, target) && push(x, back, x.in.operand_size);
}

bool op_ret(Execution& x) {
    const unsigned size = x.in.operand_size;
    std::uint64_t target;
    if (!peek(x, target, size) || !branch_to(x, target))
        return false;
    const bool has_immediate = x.in.operands[0].kind == OperandKind::Immediate;
    release(x, size + (has_immediate ? x.in.immediate & 0xffff : 0));
    return true;
}

bool op_jcc(Execution& x) {
    return jump_if(x, condition_holds(x.cx.state.rflags, x.in.condition()));
}
bool op_jcxz(Execution& x) { return jump_if(x, gpr(x, Rcx, x.in.address_size) == 0); }
bool op_loop(Execution& x) { return loop_while(x, true); }
bool op_loope(Execution& x) { return loop_while(x, (x.cx.state.rflags & FLAG_ZF) != 0); }
bool op_loopne(Execution& x) { return loop_while(x, (x.cx.state.rflags & FLAG_ZF) == 0); }

bool op_jmp_far(Execution& x) {
    FarTarget to;
    return far_target(x, to) &&
           transferred(x, far_jump(x.cx, to.selector, to.offset, x.in.operand_size, x.next));
}
bool op_call_far(Execution& x) {
    FarTarget to;
    return far_target(x, to) &&
           transferred(x, far_call(x.cx, to.selector, to.offset, x.in.operand_size, x.next));
}
bool op_ret_far(Execution& x) {
    const bool has_immediate = x.in.operands[0].kind == OperandKind::Immediate;
    const auto bytes = static_cast<std::uint32_t>(has_immediate ? x.in.immediate & 0xffff : 0);
    return transferred(x, far_return(x.cx, x.in.operand_size, bytes));
}
bool op_iret(Execution& x) { return transferred(x, iret(x.cx, x.in.operand_size, x.next)); }
bool op_int(Execution& x) {
    const auto vector = static_cast<std::uint8_t>(x.in.immediate);
    return transferred(x, software_interrupt(x.cx, vector, x.next));
}
bool op_int3(Execution& x) { return transferred(x, int3(x.cx, x.next)); }
bool op_int1(Execution& x) { return transferred(x, int1(x.cx, x.next)); }
bool op_into(Execution& x) {
    return (x.cx.state.rflags & FLAG_OF) == 0 || transferred(x, into(x.cx, x.next));
}
bool op_syscall(Execution& x) { return transferred(x, syscall(x.cx, x.next)); }
bool op_sysret(Execution& x) { return transferred(x, sysret(x.cx, x.in.operand_size)); }
bool op_sysenter(Execution& x) { return transferred(x, sysenter(x.cx)); }
bool op_sysexit(Execution& x) { return transferred(x, sysexit(x.cx, x.in.operand_size)); }

} // namespace doppel::cpu::x86::interpreter
