// SPDX-License-Identifier: Apache-2.0
#include "tests/oracle/operand.hpp"

#include "cpu/x86/cpu_state.hpp"

namespace doppel::oracle {

using namespace cpu::x86;

namespace {

std::uint64_t register_value(const Case& test, const Instruction& in, unsigned number) {
    if (number == kRip)
        return initial_rip(test) + in.length;
    return number == kNoRegister ? 0 : test.gpr[number];
}

std::uint64_t mask_of(unsigned bytes) {
    return bytes >= 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << bytes * 8) - 1;
}

} // namespace

std::uint64_t segment_base(Mode mode, unsigned segment) {
    if (mode != Mode::Bits16)
        return segment == Fs ? area::kFsBase : segment == Gs ? area::kGsBase : 0;
    return segment == Cs ? area::kCode : segment == Ss ? area::kStack : area::kData;
}

std::uint64_t operand_offset(const Case& test, const Instruction& in) {
    const std::uint64_t sum = register_value(test, in, in.memory_base) +
                              register_value(test, in, in.memory_index) * in.memory_scale +
                              static_cast<std::uint64_t>(in.displacement);
    return sum & mask_of(in.address_size);
}

bool operand_wraps(const Case& test, const Instruction& in) {
    if (!in.has_memory() || in.has(attribute::kVsib) || test.mode == Mode::Bits64)
        return false;
    const std::uint64_t end = test.mode == Mode::Bits16 ? 0x1'0000 : 0x1'0000'0000;
    const unsigned size = in.op == Op::Bound ? 2u * in.operand_size : in.memory_size;
    const std::uint64_t linear =
        operand_offset(test, in) + segment_base(test.mode, in.memory_segment);
    return operand_offset(test, in) + size > end || (linear & 0xffff'ffff) + size > 0x1'0000'0000;
}

bool takes_bus_lock(const Case& test, const Instruction& in) {
    constexpr std::uint64_t kLine = 64;
    if (!in.has_memory() || !(in.lock() || in.op == Op::Xchg))
        return false;
    const std::uint64_t linear =
        operand_offset(test, in) + segment_base(test.mode, in.memory_segment);
    if (in.op == Op::Bts || in.op == Op::Btr || in.op == Op::Btc) // the bit may be in another line
        return linear % in.memory_size != 0;
    return linear % kLine + in.memory_size > kLine;
}

} // namespace doppel::oracle
