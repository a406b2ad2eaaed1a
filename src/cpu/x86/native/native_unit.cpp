// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/native/native_unit.hpp"

#include <cstring>
#include <immintrin.h>

#include "cpu/x86/native/masked_memory.hpp"
#include "cpu/x86/native/x87_pointers.hpp"
#include "cpu/x86/system/segment_access.hpp"

namespace doppel::cpu::x86::native {
namespace {

constexpr std::uint32_t kMxcsrAllowed = 0xffff;
constexpr std::uint32_t kChunk = 64; // what read_linear() and write_linear() take at most

std::uint64_t arithmetic_to_ax(std::uint64_t rflags) {
    return (rflags & 0xff) << 8 | (rflags >> 11 & 1);
}
std::uint64_t arithmetic_from_ax(std::uint64_t rflags, std::uint64_t ax) {
    return (rflags & ~kArithmeticFlags) | (ax >> 8 & kArithmeticFlags & 0xff) | (ax & 1) << 11;
}

void merge_gpr(std::uint64_t& to, std::uint64_t value, unsigned size) {
    if (size == 8)
        to = value;
    else if (size == 4)
        to = value & 0xffff'ffff;
    else if (size == 2)
        to = (to & ~std::uint64_t{0xffff}) | (value & 0xffff);
    else
        to = (to & ~std::uint64_t{0xff}) | (value & 0xff);
}

/// The SHA instructions want aligned operands on Intel's CPUs and take any on AMD's.
bool must_be_aligned(const Instruction& in, bool amd) {
    return in.has(attribute::kAligned) && !(amd && in.feature == IsaFeature::Sha);
}

/// x87 and MMX instructions raise what an earlier one left pending, before they look at memory.
bool waits_for_x87(const Instruction& in) {
    if (!in.has(attribute::kX87State) || in.has(attribute::kX87NoWait))
        return false;
    if (in.type != InstructionClass::Sse)
        return true;
    for (const Operand& operand : in.operands)
        if (operand.kind == OperandKind::Mmx)
            return true;
    return false; // CVTPI2PS and CVTPI2PD from memory
}

/// What #AC, if on, wants operands aligned to: their size, up to 16 on AMD's CPUs and 8 on Intel's;
/// x87 environments 4.
std::uint32_t ac_alignment(const Instruction& in, bool amd) {
    switch (in.memory_size) {
    case 1:
    case 2:
    case 4:
    case 8: return in.memory_size;
    case 10: return 8;
    case 16:
    case 32: return amd ? 16 : 0;
    default: return 4;
    }
}

std::uint64_t effective_address(const SystemContext& cx, const Instruction& in,
                                std::uint64_t next) {
    std::uint64_t address = static_cast<std::uint64_t>(in.displacement);
    if (in.memory_base <= R15)
        address += cx.state.gpr[in.memory_base];
    else if (in.memory_base == kRip)
        address += next;
    if (in.memory_index <= R15)
        address += cx.state.gpr[in.memory_index] * in.memory_scale;
    if (in.address_size == 8)
        return address;
    return address & (in.address_size == 4 ? 0xffff'ffff : 0xffff);
}

/// VZEROUPPER and VZEROALL clear ymm8 to ymm15 in 64-bit code only.
bool is_vzero(const Instruction& in) {
    return in.is_vex() && in.map == OpcodeMap::Map0F && in.opcode == 0x77;
}
using HighRegisters = std::array<VectorRegisters::Bytes, 8>;
HighRegisters high_registers(const VectorRegisters& registers) {
    HighRegisters high;
    for (unsigned i = 0; i < 8; ++i)
        high[i] = registers.ymm(8 + i);
    return high;
}
void put_high_registers(VectorRegisters& registers, const HighRegisters& high) {
    for (unsigned i = 0; i < 8; ++i)
        registers.set_ymm(8 + i, high[i]);
}

bool load_mxcsr(SystemContext& cx, const std::byte* from) {
    std::uint32_t value;
    std::memcpy(&value, from, sizeof value);
    if ((value & ~kMxcsrAllowed) != 0)
        return cx.gp(0);
    VectorRegisters{cx.state.xsave}.set(VectorRegisters::kMxcsr, value);
    return true;
}

/// The x87's pointers after the instruction.
X87Pointers pointers_after(const SystemContext& cx, const Instruction& in, std::uint64_t offset,
                           const X87Pointers& before, const std::byte* memory) {
    switch (in.op) {
    case Op::X87:
        return in.has(attribute::kX87NoWait) ? before : pointers_of(cx, in, offset, before);
    case Op::Fninit:
    case Op::Fnsave: return {};
    case Op::Fldenv:
    case Op::Frstor: return get_pointers(cx, in.operand_size, memory);
    default: return before;
    }
}

} // namespace

base::Result<std::unique_ptr<NativeUnit>> NativeUnit::create() {
    install_trap_handlers();
    std::unique_ptr<NativeUnit> unit{new NativeUnit};
    unit->stubs_ = DOPPEL_TRY(StubCache::create());
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    unit->components_ = low & 7;
    __builtin_cpu_init();
    unit->amd_ = __builtin_cpu_is("amd") != 0;
    return unit;
}

bool NativeUnit::locate(SystemContext& cx, const Instruction& in, std::uint64_t next,
                        MemoryOperand& at) {
    at.offset = effective_address(cx, in, next);
    const auto access = in.writes_memory() ? AccessType::Write : AccessType::Read;
    const auto segment = static_cast<SegmentIndex>(in.memory_segment);
    const bool aligned = must_be_aligned(in, amd_);
    // #GP for alignment comes before #SS for the address.
    if (aligned && (linear_unchecked(cx, segment, at.offset) & (in.memory_size - 1u)) != 0)
        return cx.gp(0);
    if (!linear_address(cx, segment, at.offset, in.memory_size, access, at.linear,
                        aligned ? 0 : ac_alignment(in, amd_)))
        return false;
    return !in.writes_memory() ||
           probe_linear(cx, at.linear, in.memory_size, AccessType::Write, data_privilege(cx));
}

bool NativeUnit::fill_memory(SystemContext& cx, const Instruction& in, const MemoryOperand& at) {
    // An x87 store whose exception is unmasked does not store: what it leaves is what was there.
    const bool may_not_store = in.type == InstructionClass::X87 && in.writes_memory() &&
                               (VectorRegisters{cx.state.xsave}.fcw() & 0x3f) != 0x3f;
    if (!in.reads_memory() && !may_not_store)
        return true;
    for (std::uint32_t done = 0; done < in.memory_size; done += kChunk) {
        const std::uint32_t bytes = in.memory_size - done < kChunk ? in.memory_size - done : kChunk;
        if (!read_linear(cx, at.linear + done, memory_.data() + done, bytes, data_privilege(cx)))
            return false;
    }
    return true;
}

bool NativeUnit::store_memory(SystemContext& cx, const Instruction& in, const MemoryOperand& at) {
    for (std::uint32_t done = 0; done < in.memory_size; done += kChunk) {
        const std::uint32_t bytes = in.memory_size - done < kChunk ? in.memory_size - done : kChunk;
        if (!write_linear(cx, at.linear + done, memory_.data() + done, bytes, data_privilege(cx)))
            return false;
    }
    return true;
}

void NativeUnit::run_stub(SystemContext& cx, const Instruction& in, const HostCode& code,
                          StubCall& call) {
    const Operand* operand = gpr_operand(in);
    call.rax = cx.state.gpr[operand != nullptr ? operand->reg : std::uint8_t{Rax}];
    call.rcx = cx.state.gpr[Rcx];
    call.rdx = cx.state.gpr[Rdx];
    call.flags = arithmetic_to_ax(cx.state.rflags);
    call.xsave = &cx.state.xsave;
    call.memory = memory_.data();
    call.code = stubs_->find_or_add(code.words, code.length);
    call.components = components_;
    call_stub(call);
}

bool NativeUnit::raise_trap(SystemContext& cx, std::uint64_t trap) {
    switch (static_cast<Vector>(trap - 1)) {
    case Vector::MF: return cx.raise(Vector::MF);
    case Vector::XM: return (cx.state.cr4 & CR4_OSXMMEXCPT) != 0 ? cx.raise(Vector::XM) : cx.ud();
    default: return cx.ud();
    }
}

bool NativeUnit::execute(SystemContext& cx, const Instruction& in, const std::uint8_t* bytes,
                         std::uint64_t next) noexcept {
    VectorRegisters registers{cx.state.xsave};
    if (waits_for_x87(in) && registers.x87_exception_pending())
        return cx.raise(Vector::MF);
    switch (in.op) {
    case Op::VmaskMov: return vmaskmov(cx, in, effective_address(cx, in, next));
    case Op::MaskMov: return maskmov(cx, in);
    case Op::Gather: return gather(cx, in, bytes);
    default: break;
    }
    MemoryOperand at;
    const bool memory = in.reads_memory() || in.writes_memory();
    if (memory && (!locate(cx, in, next, at) || !fill_memory(cx, in, at)))
        return false;
    if (in.op == Op::Ldmxcsr)
        return load_mxcsr(cx, memory_.data());

    const bool keep_high = !cx.code64() && is_vzero(in);
    const auto high = keep_high ? high_registers(registers) : HighRegisters{};
    const X87Pointers before = x87_pointers(registers);
    StubCall call;
    run_stub(cx, in, rewrite(in, bytes, cx.code64()), call);
    if (call.trap != 0) {
        set_x87_pointers(registers, before);
        return raise_trap(cx, call.trap);
    }
    if (keep_high)
        put_high_registers(registers, high);
    set_x87_pointers(registers, pointers_after(cx, in, at.offset, before, memory_.data()));
    if (in.op == Op::Fnstenv || in.op == Op::Fnsave)
        put_pointers(cx, in.operand_size, before, memory_.data());
    if (in.writes_memory() && !store_memory(cx, in, at))
        return false;
    const Operand* operand = gpr_operand(in);
    if (operand != nullptr && (static_cast<unsigned>(operand->access) & 2) != 0)
        merge_gpr(cx.state.gpr[operand->reg], call.rax, operand->size);
    if (operand == nullptr && (in.registers_written & 1 << Rcx) != 0)
        cx.state.gpr[Rcx] = call.rcx;
    if (in.flags_written != 0)
        cx.state.rflags = arithmetic_from_ax(cx.state.rflags, call.flags);
    return true;
}

} // namespace doppel::cpu::x86::native
