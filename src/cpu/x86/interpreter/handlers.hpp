// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The functions that execute instructions, by the file they are in; dispatch.hpp says which Op is
/// whose.
#include "cpu/x86/interpreter/execution.hpp"

namespace doppel::cpu::x86::interpreter {

using HandlerFunction = bool(Execution&);

// alu.cpp
HandlerFunction op_add, op_or, op_adc, op_sbb, op_and, op_sub, op_xor, op_cmp, op_test, op_inc,
    op_dec, op_neg, op_not, op_adcx, op_adox, op_imul, op_mul, op_imul_wide, op_div, op_idiv,
    op_clc, op_stc, op_cmc, op_cld, op_std, op_lahf, op_sahf;
// bits.cpp
HandlerFunction op_rol, op_ror, op_rcl, op_rcr, op_shl, op_shr, op_sar, op_shld, op_shrd, op_bt,
    op_bts, op_btr, op_btc, op_bsf, op_bsr, op_tzcnt, op_lzcnt, op_popcnt, op_blsi, op_blsmsk,
    op_blsr, op_andn, op_bextr, op_bzhi, op_pdep, op_pext, op_shlx, op_shrx, op_sarx, op_rorx,
    op_mulx, op_crc32, op_bswap;
// move.cpp
HandlerFunction op_mov, op_movzx, op_movsx, op_movnti, op_movbe, op_lea, op_xchg, op_xadd,
    op_cmpxchg, op_cmpxchg8b, op_cmpxchg16b, op_cmov, op_set, op_cbw, op_cwd, op_xlat, op_nop,
    op_push, op_pop, op_pusha, op_popa, op_enter, op_leave, op_mov_from_segment, op_mov_to_segment,
    op_push_segment, op_pop_segment, op_load_far_pointer, op_bound;
// decimal.cpp
HandlerFunction op_daa, op_das, op_aaa, op_aas, op_aam, op_aad, op_salc, op_arpl;
// branch.cpp
HandlerFunction op_jmp, op_call, op_ret, op_jcc, op_jcxz, op_loop, op_loope, op_loopne, op_jmp_far,
    op_call_far, op_ret_far, op_iret, op_int, op_int3, op_int1, op_into, op_syscall, op_sysret,
    op_sysenter, op_sysexit;
// string.cpp
HandlerFunction op_movs, op_stos, op_lods, op_cmps, op_scas, op_ins, op_outs, op_in, op_out;
// system_ops.cpp
HandlerFunction op_undefined, op_cli, op_sti, op_clac, op_stac, op_hlt, op_pushf, op_popf, op_cpuid,
    op_rdtsc, op_rdtscp, op_rdpmc, op_rdmsr, op_wrmsr, op_rdpid, op_rdrand, op_rdseed, op_rdfsbase,
    op_rdgsbase, op_wrfsbase, op_wrgsbase, op_swapgs, op_sgdt, op_sidt, op_lgdt, op_lidt, op_sldt,
    op_str, op_lldt, op_ltr, op_lar, op_lsl, op_verr, op_verw, op_mov_from_control,
    op_mov_to_control, op_mov_from_debug, op_mov_to_debug, op_clts, op_lmsw, op_smsw, op_xgetbv,
    op_xsetbv, op_invlpg, op_invpcid, op_invd, op_wbinvd, op_clflush, op_clflushopt, op_clwb,
    op_fence, op_pause, op_monitor, op_mwait, op_fxsave, op_fxrstor, op_xsave, op_xsaveopt,
    op_xsavec, op_xsaves, op_xrstor, op_xrstors, op_vector;

} // namespace doppel::cpu::x86::interpreter
