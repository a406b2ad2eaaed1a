// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/disassembler/disassembler.hpp"

#include <doctest/doctest.h>

#include "cpu/x86/decoder/decoder.hpp"

namespace doppel::cpu::x86 {

TEST_CASE("an instruction's text has absolute branch targets") {
    const std::uint8_t bytes[] = {0xeb, 0xfe};
    CHECK(disassemble(bytes, CodeSize::Bits64, 0x1000) == "jmp 0x0000000000001000");
    CHECK(disassemble(bytes, CodeSize::Bits16, 0x10) == "jmp 0x0010");
}

TEST_CASE("what is no instruction says so") {
    const std::uint8_t bytes[] = {0x06};
    CHECK(disassemble(bytes, CodeSize::Bits64, 0) == "(bad)");
}

TEST_CASE("operations have names") {
    CHECK(op_name(Op::Add) == "add");
    CHECK(op_name(Op::MovToControl) == "movtocontrol");
    CHECK(op_name(Op::Pcmpistr) == "pcmpistr");
    CHECK(op_name(Op::Count) == "?");
}

TEST_CASE("an instruction describes itself") {
    const std::uint8_t bytes[] = {0x48, 0x03, 0x43, 0x10};
    Instruction in;
    REQUIRE(decode(bytes, CodeSize::Bits64, in) == DecodeStatus::Ok);
    CHECK(describe(in).starts_with("add length 4 size 8 address 8 gpr0:8rw mem"));
}

} // namespace doppel::cpu::x86
