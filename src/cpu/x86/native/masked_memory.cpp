// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/native/masked_memory.hpp"

#include "cpu/x86/native/vector_registers.hpp"
#include "cpu/x86/system/segment_access.hpp"

namespace doppel::cpu::x86::native {
namespace {

std::uint64_t address_mask(const Instruction& in) {
    return in.address_size == 8 ? ~std::uint64_t{0} : in.address_size == 4 ? 0xffff'ffff : 0xffff;
}
SegmentIndex segment_of(const Instruction& in) {
    return static_cast<SegmentIndex>(in.memory_segment);
}
bool selected(const VectorRegisters::Bytes& mask, unsigned last_byte) {
    return (mask[last_byte] & 0x80) != 0;
}

/// Element accesses know no #AC.
bool read_element(SystemContext& cx, SegmentIndex segment, std::uint64_t offset, void* to,
                  std::uint32_t bytes) {
    std::uint64_t linear;
    return linear_address(cx, segment, offset, bytes, AccessType::Read, linear, 0) &&
           read_linear(cx, linear, to, bytes, data_privilege(cx));
}
bool write_element(SystemContext& cx, SegmentIndex segment, std::uint64_t offset, const void* from,
                   std::uint32_t bytes) {
    std::uint64_t linear;
    return linear_address(cx, segment, offset, bytes, AccessType::Write, linear, 0) &&
           write_linear(cx, linear, from, bytes, data_privilege(cx));
}
/// Raises what a write would raise, writes nothing.
bool probe_write(SystemContext& cx, SegmentIndex segment, std::uint64_t offset,
                 std::uint32_t bytes) {
    std::uint64_t linear;
    return linear_address(cx, segment, offset, bytes, AccessType::Write, linear, 0) &&
           probe_linear(cx, linear, bytes, AccessType::Write, data_privilege(cx));
}

/// Writes the elements whose mask bit is set; all are probed before the first is written.
bool store_selected(SystemContext& cx, const Instruction& in, std::uint64_t offset,
                    const VectorRegisters::Bytes& data, const VectorRegisters::Bytes& mask,
                    unsigned bytes, unsigned element) {
    for (unsigned at = 0; at < bytes; at += element)
        if (selected(mask, at + element - 1) &&
            !probe_write(cx, segment_of(in), (offset + at) & address_mask(in), element))
            return false;
    for (unsigned at = 0; at < bytes; at += element)
        if (selected(mask, at + element - 1) &&
            !write_element(cx, segment_of(in), (offset + at) & address_mask(in), data.data() + at,
                           element))
            return false;
    return true;
}

} // namespace

bool vmaskmov(SystemContext& cx, const Instruction& in, std::uint64_t offset) {
    VectorRegisters registers{cx.state.xsave};
    const bool integer = in.opcode >= 0x8c; // 2C..2F: PS is even, PD odd
    const unsigned element = integer ? ((in.rex & 8) != 0 ? 8 : 4) : (in.opcode & 1) != 0 ? 8 : 4;
    const unsigned bytes = in.memory_size;
    const auto mask = registers.ymm(in.operands[1].reg);
    // The segment is checked for all of them before paging is for any.
    const auto access = in.writes_memory() ? AccessType::Write : AccessType::Read;
    for (unsigned at = 0; at < bytes; at += element) {
        std::uint64_t linear;
        if (selected(mask, at + element - 1) &&
            !linear_address(cx, segment_of(in), offset + at, element, access, linear, 0))
            return false;
    }
    if (in.writes_memory())
        return store_selected(cx, in, offset, registers.ymm(in.operands[2].reg), mask, bytes,
                              element);
    VectorRegisters::Bytes result{};
    for (unsigned at = 0; at < bytes; at += element)
        if (selected(mask, at + element - 1) &&
            !read_element(cx, segment_of(in), (offset + at) & address_mask(in), result.data() + at,
                          element))
            return false;
    registers.set_ymm(in.operands[0].reg, result);
    return true;
}

bool maskmov(SystemContext& cx, const Instruction& in) {
    VectorRegisters registers{cx.state.xsave};
    const std::uint64_t offset = cx.state.gpr[Rdi] & address_mask(in);
    std::uint64_t linear;
    if (!linear_address(cx, segment_of(in), offset, 1, AccessType::Write, linear, 8)) // #AC
        return false;
    if (in.type != InstructionClass::Mmx)
        return store_selected(cx, in, offset, registers.ymm(in.operands[0].reg),
                              registers.ymm(in.operands[1].reg), 16, 1);
    VectorRegisters::Bytes data{}, mask{};
    const std::uint64_t values[2] = {registers.mmx(in.operands[0].reg),
                                     registers.mmx(in.operands[1].reg)};
    std::memcpy(data.data(), &values[0], 8);
    std::memcpy(mask.data(), &values[1], 8);
    if (!store_selected(cx, in, offset, data, mask, 8, 1))
        return false;
    registers.enter_mmx();
    return true;
}

bool gather(SystemContext& cx, const Instruction& in, const std::uint8_t* bytes) {
    VectorRegisters registers{cx.state.xsave};
    const unsigned vector = (bytes[in.opcode_offset - 1] & 4) != 0 ? 32 : 16;
    const unsigned index_size = (in.opcode & 1) != 0 ? 8 : 4;
    const unsigned element = in.memory_size;
    const unsigned count = vector / (index_size > element ? index_size : element);
    const auto indexes = registers.ymm(in.memory_index);
    auto data = registers.ymm(in.operands[0].reg);
    auto mask = registers.ymm(in.operands[2].reg);
    std::uint64_t base = static_cast<std::uint64_t>(in.displacement);
    if (in.memory_base <= R15)
        base += cx.state.gpr[in.memory_base];
    const auto commit = [&] {
        registers.set_ymm(in.operands[0].reg, data);
        registers.set_ymm(in.operands[2].reg, mask);
    };
    for (unsigned i = 0; i < count; ++i) {
        std::int64_t index = 0;
        if (index_size == 8) {
            std::memcpy(&index, indexes.data() + i * 8, 8);
        } else {
            std::int32_t narrow;
            std::memcpy(&narrow, indexes.data() + i * 4, 4);
            index = narrow;
        }
        const std::uint64_t offset =
            (base + static_cast<std::uint64_t>(index) * in.memory_scale) & address_mask(in);
        if (selected(mask, i * element + element - 1) &&
            !read_element(cx, segment_of(in), offset, data.data() + i * element, element)) {
            commit(); // what is done is done: its mask elements are clear
            return false;
        }
        std::memset(mask.data() + i * element, 0, element);
    }
    std::memset(data.data() + count * element, 0, 32 - count * element);
    mask = {};
    commit();
    return true;
}

} // namespace doppel::cpu::x86::native
