// SPDX-License-Identifier: Apache-2.0
/// System instructions: operands here, meaning in the system layer.
#include "cpu/x86/interpreter/handlers.hpp"
#include "cpu/x86/system/system.hpp"

namespace doppel::cpu::x86::interpreter {
namespace {

DOPPEL_HOT bool read_selector(Execution& x, std::uint16_t& selector) {
    std::uint64_t value;
    if (!read_operand(x, x.in.operands[x.in.operands[1].kind == OperandKind::None ? 0 : 1], value))
        return false;
    selector = static_cast<std::uint16_t>(value);
    return true;
}

/// SGDT, SIDT: limit, then 4 or 8 bytes of base.
DOPPEL_HOT bool store_table(Execution& x, const DescriptorTable& table) {
    if (!check_umip(x.cx))
        return false;
    std::uint64_t image[2];
    auto* bytes = reinterpret_cast<std::uint8_t*>(image);
    __builtin_memcpy(bytes, &table.limit, 2);
    __builtin_memcpy(bytes + 2, &table.base, 8);
    const unsigned size = x.cx.code64() ? 10 : 6;
    return write_data(x.cx, memory_segment(x), effective_address(x), bytes, size);
}
/// LGDT, LIDT: a 16-bit operand size means a base of 24 bits.
DOPPEL_HOT bool read_table(Execution& x, DescriptorTable& table) {
    std::uint64_t image[2] = {};
    auto* bytes = reinterpret_cast<std::uint8_t*>(image);
    const unsigned size = x.cx.code64() ? 10 : 6;
    if (!read_data(x.cx, memory_segment(x), effective_address(x), bytes, size))
        return false;
    __builtin_memcpy(&table.limit, bytes, 2);
    __builtin_memcpy(&table.base, bytes + 2, 8);
    if (!x.cx.code64() && x.in.operand_size == 2)
        table.base &= 0xff'ffff;
    return true;
}

DOPPEL_HOT bool verify(Execution& x, AccessType access) {
    std::uint16_t selector;
    bool valid;
    if (!read_selector(x, selector) || !verify_segment(x.cx, selector, access, valid))
        return false;
    set_flag(x.cx.state, FLAG_ZF, valid);
    return true;
}

using LoadSegmentPart = bool (*)(SystemContext&, std::uint16_t, bool&, std::uint32_t&);
DOPPEL_HOT bool load_part(Execution& x, LoadSegmentPart part) {
    std::uint16_t selector;
    bool valid;
    std::uint32_t result;
    if (!read_selector(x, selector) || !part(x.cx, selector, valid, result))
        return false;
    if (valid)
        write_register(x, x.in.operands[0], result);
    set_flag(x.cx.state, FLAG_ZF, valid);
    return true;
}

/// RDRAND and RDSEED: CF says whether there was a number, the other flags are cleared.
DOPPEL_HOT void random(Execution& x, std::uint64_t value, bool valid) {
    write_register(x, x.in.operands[0], valid ? value : 0);
    x.cx.state.rflags = (x.cx.state.rflags & ~kArithmeticFlags) | (valid ? FLAG_CF : 0);
}

/// From the board, for a vCPU whose numbers are not the host CPU's.
DOPPEL_HOT bool board_random(Execution& x) {
    std::uint64_t value = 0;
    const bool valid = x.cx.board.random(value);
    random(x, value, valid);
    return true;
}

/// CLFLUSH & co. read a byte as far as faults are concerned.
DOPPEL_HOT bool touch_line(Execution& x) {
    std::uint64_t byte;
    return load(x, memory_segment(x), effective_address(x), 1, byte);
}

} // namespace

bool op_undefined(Execution& x) { return x.cx.ud(); }

bool op_cli(Execution& x) { return cli(x.cx); }
bool op_sti(Execution& x) { return sti(x.cx); }
bool op_clac(Execution& x) { return clac(x.cx); }
bool op_stac(Execution& x) { return stac(x.cx); }
bool op_hlt(Execution& x) { return halt(x.cx); }

bool op_pushf(Execution& x) {
    std::uint64_t image;
    return pushf_image(x.cx, x.in.operand_size, image) && push(x, image, x.in.operand_size);
}
bool op_popf(Execution& x) {
    std::uint64_t image;
    if (!peek(x, image, x.in.operand_size) || !popf(x.cx, x.in.operand_size, image))
        return false;
    release(x, x.in.operand_size);
    return true;
}

bool op_cpuid(Execution& x) {
    cpuid(x.cx);
    return true;
}
bool op_rdtsc(Execution& x) { return rdtsc(x.cx); }
bool op_rdtscp(Execution& x) { return rdtscp(x.cx); }
bool op_rdpmc(Execution& x) { return rdpmc(x.cx); }
bool op_rdmsr(Execution& x) { return rdmsr(x.cx); }
bool op_wrmsr(Execution& x) { return wrmsr(x.cx); }
bool op_rdpid(Execution& x) {
    write_register(x, x.in.operands[0], x.cx.state.tsc_aux);
    return true;
}

bool op_rdrand(Execution& x) {
    if (x.cx.own_entropy)
        return board_random(x);
    unsigned long long value = 0;
    unsigned char valid = 0;
    asm volatile("rdrand %0\n\tsetc %1" : "=r"(value), "=qm"(valid)::"cc");
    random(x, value, valid != 0);
    return true;
}
bool op_rdseed(Execution& x) {
    if (x.cx.own_entropy)
        return board_random(x);
    unsigned long long value = 0;
    unsigned char valid = 0;
    asm volatile("rdseed %0\n\tsetc %1" : "=r"(value), "=qm"(valid)::"cc");
    random(x, value, valid != 0);
    return true;
}

// --- segment bases and descriptor tables ---

bool op_rdfsbase(Execution& x) {
    std::uint64_t value;
    if (!read_segment_base(x.cx, Fs, value))
        return false;
    write_register(x, x.in.operands[0], value);
    return true;
}
bool op_rdgsbase(Execution& x) {
    std::uint64_t value;
    if (!read_segment_base(x.cx, Gs, value))
        return false;
    write_register(x, x.in.operands[0], value);
    return true;
}
bool op_wrfsbase(Execution& x) {
    return write_segment_base(x.cx, Fs, read_register(x, x.in.operands[0]));
}
bool op_wrgsbase(Execution& x) {
    return write_segment_base(x.cx, Gs, read_register(x, x.in.operands[0]));
}
bool op_swapgs(Execution& x) { return swapgs(x.cx); }

bool op_sgdt(Execution& x) { return store_table(x, x.cx.state.gdtr); }
bool op_sidt(Execution& x) { return store_table(x, x.cx.state.idtr); }
bool op_lgdt(Execution& x) {
    DescriptorTable table;
    return read_table(x, table) && load_gdtr(x.cx, table);
}
bool op_lidt(Execution& x) {
    DescriptorTable table;
    return read_table(x, table) && load_idtr(x.cx, table);
}
bool op_sldt(Execution& x) {
    return check_umip(x.cx) && write_operand(x, x.in.operands[0], x.cx.state.ldtr.selector);
}
bool op_str(Execution& x) {
    return check_umip(x.cx) && write_operand(x, x.in.operands[0], x.cx.state.tr.selector);
}
bool op_lldt(Execution& x) {
    std::uint16_t selector;
    return read_selector(x, selector) && load_ldtr(x.cx, selector);
}
bool op_ltr(Execution& x) {
    std::uint16_t selector;
    return read_selector(x, selector) && load_tr(x.cx, selector);
}
bool op_lar(Execution& x) { return load_part(x, load_access_rights); }
bool op_lsl(Execution& x) { return load_part(x, load_segment_limit); }
bool op_verr(Execution& x) { return verify(x, AccessType::Read); }
bool op_verw(Execution& x) { return verify(x, AccessType::Write); }

// --- control and debug registers ---

bool op_mov_from_control(Execution& x) {
    std::uint64_t value;
    if (!read_control(x.cx, x.in.operands[1].reg, value))
        return false;
    write_register(x, x.in.operands[0], value);
    return true;
}
bool op_mov_to_control(Execution& x) {
    return write_control(x.cx, x.in.operands[0].reg, read_register(x, x.in.operands[1]));
}
bool op_mov_from_debug(Execution& x) {
    std::uint64_t value;
    if (!read_debug(x.cx, x.in.operands[1].reg, value))
        return false;
    write_register(x, x.in.operands[0], value);
    return true;
}
bool op_mov_to_debug(Execution& x) {
    return write_debug(x.cx, x.in.operands[0].reg, read_register(x, x.in.operands[1]));
}
bool op_clts(Execution& x) { return clts(x.cx); }
bool op_lmsw(Execution& x) {
    std::uint64_t value;
    return read_operand(x, x.in.operands[0], value) &&
           lmsw(x.cx, static_cast<std::uint16_t>(value));
}
bool op_smsw(Execution& x) {
    std::uint64_t value;
    return smsw(x.cx, value) && write_operand(x, x.in.operands[0], value);
}
bool op_xgetbv(Execution& x) { return xgetbv(x.cx); }
bool op_xsetbv(Execution& x) { return xsetbv(x.cx); }

bool op_invlpg(Execution& x) {
    return invlpg(x.cx, linear_unchecked(x.cx, memory_segment(x), effective_address(x)));
}
bool op_invpcid(Execution& x) {
    std::uint64_t descriptor[2];
    if (!read_data(x.cx, memory_segment(x), effective_address(x), descriptor, 16))
        return false;
    return invpcid(x.cx, read_register(x, x.in.operands[0]), descriptor[0], descriptor[1]);
}
bool op_invd(Execution& x) { return wbinvd(x.cx); }
bool op_wbinvd(Execution& x) { return wbinvd(x.cx); }

// --- caches and fences ---

bool op_clflush(Execution& x) { return touch_line(x); }
bool op_clflushopt(Execution& x) { return touch_line(x); }
bool op_clwb(Execution& x) { return touch_line(x); }
bool op_fence(Execution&) {
    asm volatile("mfence" ::: "memory");
    return true;
}
bool op_pause(Execution& x) {
    asm volatile("pause");
    if (++x.cx.pauses % kPausesBetweenYields == 0)
        x.cx.board.yield();
    return true;
}

/// MONITOR checks its address, MWAIT does not wait: as if something had been written already.
bool op_monitor(Execution& x) {
    std::uint64_t byte;
    const std::uint64_t offset = gpr(x, Rax, x.in.address_size);
    return load(x, memory_segment(x), offset, 1, byte) && (gpr(x, Rcx, 4) == 0 || x.cx.gp(0));
}
bool op_mwait(Execution& x) { return gpr(x, Rcx, 4) <= 1 || x.cx.gp(0); }

// --- FXSAVE and XSAVE ---

bool op_fxsave(Execution& x) {
    return fxsave(x.cx, memory_segment(x), effective_address(x), x.in.operand_size);
}
bool op_fxrstor(Execution& x) {
    return fxrstor(x.cx, memory_segment(x), effective_address(x), x.in.operand_size);
}
bool op_xsave(Execution& x) {
    return xsave(x.cx, XsaveForm::Xsave, memory_segment(x), effective_address(x),
                 x.in.operand_size);
}
bool op_xsaveopt(Execution& x) {
    return xsave(x.cx, XsaveForm::Xsaveopt, memory_segment(x), effective_address(x),
                 x.in.operand_size);
}
bool op_xsavec(Execution& x) {
    return xsave(x.cx, XsaveForm::Xsavec, memory_segment(x), effective_address(x),
                 x.in.operand_size);
}
bool op_xsaves(Execution& x) {
    return xsave(x.cx, XsaveForm::Xsaves, memory_segment(x), effective_address(x),
                 x.in.operand_size);
}
bool op_xrstor(Execution& x) {
    return xrstor(x.cx, XrstorForm::Xrstor, memory_segment(x), effective_address(x),
                  x.in.operand_size);
}
bool op_xrstors(Execution& x) {
    return xrstor(x.cx, XrstorForm::Xrstors, memory_segment(x), effective_address(x),
                  x.in.operand_size);
}

/// x87, MMX, SSE, AVX.
bool op_vector(Execution& x) { return x.vectors.execute(x.cx, x.in, x.bytes, x.next); }

} // namespace doppel::cpu::x86::interpreter
