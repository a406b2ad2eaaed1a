// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/disassembler/disassembler.hpp"

#include <Zydis/Zydis.h>
#include <fmt/format.h>

namespace doppel::cpu::x86 {
namespace {

ZydisMachineMode machine_mode(CodeSize code_size) {
    switch (code_size) {
    case CodeSize::Bits16: return ZYDIS_MACHINE_MODE_LEGACY_16;
    case CodeSize::Bits32: return ZYDIS_MACHINE_MODE_LEGACY_32;
    default: return ZYDIS_MACHINE_MODE_LONG_64;
    }
}

std::string describe(const Operand& operand) {
    constexpr const char* kKinds[] = {"none", "gpr", "gpr-high", "seg", "cr",   "dr",  "st",
                                      "mm",   "vec", "mem",      "imm", "imm2", "rel", "far"};
    constexpr const char* kAccess[] = {"", "r", "w", "rw", "addr"};
    return fmt::format(" {}{}:{}{}", kKinds[unsigned(operand.kind)], unsigned(operand.reg),
                       unsigned(operand.size), kAccess[unsigned(operand.access)]);
}

} // namespace

std::string disassemble(std::span<const std::uint8_t> bytes, CodeSize code_size,
                        std::uint64_t address) {
    ZydisDisassembledInstruction decoded;
    const auto status = ZydisDisassembleIntel(machine_mode(code_size), address, bytes.data(),
                                              bytes.size(), &decoded);
    return ZYAN_SUCCESS(status) ? std::string{decoded.text} : std::string{"(bad)"};
}

std::string describe(const Instruction& in) {
    std::string text =
        fmt::format("{} length {} size {} address {}", op_name(in.op), unsigned(in.length),
                    unsigned(in.operand_size), unsigned(in.address_size));
    for (const Operand& operand : in.operands)
        if (operand.kind != OperandKind::None)
            text += describe(operand);
    if (in.has_memory())
        text +=
            fmt::format(" [seg {} base {} index {}*{} disp {:#x}]:{}", unsigned(in.memory_segment),
                        unsigned(in.memory_base), unsigned(in.memory_index),
                        unsigned(in.memory_scale), in.displacement, unsigned(in.memory_size));
    return text + fmt::format(" imm {:#x} flags r {:#x} w {:#x} u {:#x} regs r {:#x} w {:#x}",
                              in.immediate, unsigned(in.flags_read), unsigned(in.flags_written),
                              unsigned(in.flags_undefined), unsigned(in.registers_read),
                              unsigned(in.registers_written));
}

} // namespace doppel::cpu::x86
