// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/native/x87_pointers.hpp"

namespace doppel::cpu::x86::native {
namespace {

constexpr std::uint16_t kFopMask = 0x7ff;

void put16(std::byte* to, std::uint64_t value) {
    const auto word = static_cast<std::uint16_t>(value);
    std::memcpy(to, &word, 2);
}
void put32(std::byte* to, std::uint64_t value) {
    const auto word = static_cast<std::uint32_t>(value);
    std::memcpy(to, &word, 4);
}
std::uint64_t get16(const std::byte* from) {
    std::uint16_t word;
    std::memcpy(&word, from, 2);
    return word;
}
std::uint64_t get32(const std::byte* from) {
    std::uint32_t word;
    std::memcpy(&word, from, 4);
    return word;
}

/// Real-mode images hold linear addresses.
std::uint64_t real_address(std::uint64_t pointer) {
    return ((pointer & 0xffff'ffff) + (pointer >> 32 & 0xffff) * 16) & 0xffff'ffff;
}

} // namespace

X87Pointers x87_pointers(const VectorRegisters& registers) {
    if ((registers.get<std::uint64_t>(VectorRegisters::kXstateBv) & VectorRegisters::kX87) == 0)
        return {};
    return {registers.get<std::uint16_t>(VectorRegisters::kFop),
            registers.get<std::uint64_t>(VectorRegisters::kFip),
            registers.get<std::uint64_t>(VectorRegisters::kFdp)};
}

void set_x87_pointers(VectorRegisters& registers, const X87Pointers& pointers) {
    const bool zero = pointers.fop == 0 && pointers.fip == 0 && pointers.fdp == 0;
    const auto valid = registers.get<std::uint64_t>(VectorRegisters::kXstateBv);
    if (zero && (valid & VectorRegisters::kX87) == 0)
        return;
    registers.make_x87_valid();
    registers.set(VectorRegisters::kFop, pointers.fop);
    registers.set(VectorRegisters::kFip, pointers.fip);
    registers.set(VectorRegisters::kFdp, pointers.fdp);
}

X87Pointers pointers_of(const SystemContext& cx, const Instruction& in,
                        std::uint64_t operand_offset, const X87Pointers& before) {
    X87Pointers pointers = before;
    pointers.fop = static_cast<std::uint16_t>((in.opcode & 7) << 8 | in.modrm);
    pointers.fip = cx.state.rip;
    if (in.has_memory())
        pointers.fdp = operand_offset;
    if (!cx.code64()) {
        pointers.fip |= std::uint64_t{cx.state.segment[Cs].selector} << 32;
        if (in.has_memory())
            pointers.fdp |= std::uint64_t{cx.state.segment[in.memory_segment].selector} << 32;
    }
    return pointers;
}

void put_pointers(const SystemContext& cx, unsigned operand_size, const X87Pointers& pointers,
                  std::byte* image) {
    const std::uint64_t ip = real_address(pointers.fip), dp = real_address(pointers.fdp);
    if (operand_size == 2) {
        const bool real = cx.real_or_v86();
        put16(image + 6, real ? ip : pointers.fip);
        put16(image + 8, real ? (ip >> 16 & 0xf) << 12 | pointers.fop : pointers.fip >> 32);
        put16(image + 10, real ? dp : pointers.fdp);
        put16(image + 12, real ? (dp >> 16 & 0xf) << 12 : pointers.fdp >> 32);
    } else if (cx.real_or_v86()) {
        put32(image + 12, ip & 0xffff);
        put32(image + 16, (ip >> 16) << 12 | pointers.fop);
        put32(image + 20, dp & 0xffff);
        put32(image + 24, (dp >> 16) << 12);
    } else {
        put32(image + 12, pointers.fip);
        put32(image + 16, (pointers.fip >> 32 & 0xffff) | std::uint64_t{pointers.fop} << 16);
        put32(image + 20, pointers.fdp);
        put32(image + 24, (pointers.fdp >> 32 & 0xffff) | 0xffff'0000u);
    }
}

X87Pointers get_pointers(const SystemContext& cx, unsigned operand_size, const std::byte* image) {
    X87Pointers pointers;
    if (operand_size == 2) {
        const std::uint64_t ip_high = get16(image + 8), dp_high = get16(image + 12);
        if (cx.real_or_v86()) {
            pointers.fip = get16(image + 6) | (ip_high >> 12) << 16;
            pointers.fop = static_cast<std::uint16_t>(ip_high & kFopMask);
            pointers.fdp = get16(image + 10) | (dp_high >> 12) << 16;
        } else {
            pointers.fip = get16(image + 6) | ip_high << 32;
            pointers.fdp = get16(image + 10) | dp_high << 32;
        }
    } else if (cx.real_or_v86()) {
        const std::uint64_t ip_high = get32(image + 16), dp_high = get32(image + 24);
        pointers.fip = get16(image + 12) | (ip_high >> 12 & 0xffff) << 16;
        pointers.fop = static_cast<std::uint16_t>(ip_high & kFopMask);
        pointers.fdp = get16(image + 20) | (dp_high >> 12 & 0xffff) << 16;
    } else {
        pointers.fip = get32(image + 12) | get16(image + 16) << 32;
        pointers.fop = static_cast<std::uint16_t>(get16(image + 18) & kFopMask);
        pointers.fdp = get32(image + 20) | get16(image + 24) << 32;
    }
    return pointers;
}

} // namespace doppel::cpu::x86::native
