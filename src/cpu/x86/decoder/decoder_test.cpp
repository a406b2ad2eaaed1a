// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/decoder/decoder.hpp"

#include <doctest/doctest.h>

#include <string_view>
#include <vector>

#include "cpu/x86/disassembler/disassembler.hpp"

namespace doppel::cpu::x86 {
namespace {

std::vector<std::uint8_t> bytes_of(std::string_view hex) {
    std::vector<std::uint8_t> bytes;
    for (std::size_t i = 0; i + 1 < hex.size(); i += hex[i] == ' ' ? 1 : 2)
        if (hex[i] != ' ')
            bytes.push_back(std::uint8_t(std::stoul(std::string{hex.substr(i, 2)}, nullptr, 16)));
    return bytes;
}

DecodeStatus status_of(std::string_view hex, CodeSize code_size = CodeSize::Bits64) {
    Instruction in;
    return decode(bytes_of(hex), code_size, in);
}

Instruction decoded(std::string_view hex, CodeSize code_size = CodeSize::Bits64) {
    Instruction in{};
    INFO(std::string{hex});
    REQUIRE(decode(bytes_of(hex), code_size, in) == DecodeStatus::Ok);
    CHECK(in.length == bytes_of(hex).size());
    return in;
}

constexpr std::uint16_t kAllSix = 0x8d5; // OF SF ZF AF PF CF

struct Golden {
    const char* bytes;
    CodeSize code_size;
    const char* text; // what describe() is to begin with
};

/// Checked by hand against the manuals.
constexpr Golden kGolden[] = {
    {"00 d8", CodeSize::Bits64, "add length 2 size 1 address 8 gpr0:1rw gpr3:1r imm"},
    {"48 03 43 10", CodeSize::Bits64,
     "add length 4 size 8 address 8 gpr0:8rw mem255:8r [seg 3 base 3 index 255*1 disp 0x10]:8"},
    {"80 c4 05", CodeSize::Bits64, "add length 3 size 1 address 8 gpr-high0:1rw imm0:1r imm 0x5"},
    {"40 80 c4 05", CodeSize::Bits64, "add length 4 size 1 address 8 gpr4:1rw imm0:1r imm 0x5"},
    {"66 83 e0 f0", CodeSize::Bits64,
     "and length 4 size 2 address 8 gpr0:2rw imm0:2r imm 0xfffffffffffffff0"},
    {"8b 04 25 00 10 00 00", CodeSize::Bits64,
     "mov length 7 size 4 address 8 gpr0:4w mem255:4r [seg 3 base 255 index 255*1 disp 0x1000]:4"},
    {"8b 05 00 10 00 00", CodeSize::Bits64,
     "mov length 6 size 4 address 8 gpr0:4w mem255:4r [seg 3 base 16 index 255*1 disp 0x1000]:4"},
    {"8b 05 00 10 00 00", CodeSize::Bits32,
     "mov length 6 size 4 address 4 gpr0:4w mem255:4r [seg 3 base 255 index 255*1 disp 0x1000]:4"},
    {"8b 46 fe", CodeSize::Bits16,
     "mov length 3 size 2 address 2 gpr0:2w mem255:2r [seg 2 base 5 index 255*1 disp "},
    {"65 48 8b 04 25 28 00 00 00", CodeSize::Bits64,
     "mov length 9 size 8 address 8 gpr0:8w mem255:8r [seg 5 base 255 index 255*1 disp 0x28]:8"},
    {"43 0f b6 44 a5 01", CodeSize::Bits64,
     "movzx length 6 size 4 address 8 gpr0:4w mem255:1r [seg 3 base 13 index 12*4 disp 0x1]:1"},
    {"48 b8 88 77 66 55 44 33 22 11", CodeSize::Bits64,
     "mov length 10 size 8 address 8 gpr0:8w imm0:8r imm 0x1122334455667788"},
    {"48 a1 88 77 66 55 44 33 22 11", CodeSize::Bits64,
     "mov length 10 size 8 address 8 gpr0:8w mem255:8r [seg 3 base 255 index 255*1 disp "
     "0x1122334455667788]:8"},
    {"41 54", CodeSize::Bits64, "push length 2 size 8 address 8 gpr12:8r imm"},
    {"66 50", CodeSize::Bits64, "push length 2 size 2 address 8 gpr0:2r imm"},
    {"6a ff", CodeSize::Bits64, "push length 2 size 8 address 8 imm0:8r imm 0xffffffffffffffff"},
    {"ff 14 25 00 00 00 00", CodeSize::Bits64, "call length 7 size 8 address 8 mem255:8r"},
    {"66 e9 00 00 00 00", CodeSize::Bits64, "jmp length 6 size 8 address 8 rel0:8r"},
    {"9a 78 56 34 12 10 00", CodeSize::Bits32, "callfar length 7 size 4 address 4 far0:6r"},
    {"48 ff 28", CodeSize::Bits64, "jmpfar length 3 size 8 address 8 mem255:10r"},
    {"c8 10 00 02", CodeSize::Bits64, "enter length 4 size 8 address 8 imm0:2r imm20:1r imm 0x10"},
    {"0f c7 08", CodeSize::Bits64, "cmpxchg8b length 3 size 4 address 8 mem255:8rw"},
    {"48 0f c7 08", CodeSize::Bits64, "cmpxchg16b length 4 size 8 address 8 mem255:16rw"},
    {"0f 01 10", CodeSize::Bits64, "lgdt length 3 size 8 address 8 mem255:10r"},
    {"0f 01 10", CodeSize::Bits32, "lgdt length 3 size 4 address 4 mem255:6r"},
    {"44 0f 20 c0", CodeSize::Bits64, "movfromcontrol length 4 size 8 address 8 gpr0:8w cr8:8r"},
    {"8c c8", CodeSize::Bits64, "movfromsegment length 2 size 4 address 8 gpr0:4w seg1:2r"},
    {"66 63 c8", CodeSize::Bits64, "movsx length 3 size 2 address 8 gpr1:2w gpr0:4r"},
    {"c4 e2 e9 90 04 0a", CodeSize::Bits64,
     "gather length 6 size 8 address 8 vec0:16rw mem255:8r vec2:16rw"},
    {"c5 f5 58 c2", CodeSize::Bits64, "simd length 4 size 4 address 8 vec0:32w vec1:32r vec2:32r"},
    {"c4 e3 71 4a c2 30", CodeSize::Bits64,
     "simd length 6 size 4 address 8 vec0:16w vec1:16r vec2:16r vec3:16r"},
    {"f2 48 0f 2a c3", CodeSize::Bits64, "simd length 5 size 8 address 8 vec0:16rw gpr3:8r"},
    {"66 0f 3a 16 c0 01", CodeSize::Bits64, "simd length 6 size 4 address 8 gpr0:4w vec0:16r"},
    {"d8 c3", CodeSize::Bits64, "x87 length 2 size 4 address 8 st0:10rw st3:10r"},
    {"d9 30", CodeSize::Bits16, "fnstenv length 2 size 2 address 2 mem255:14w"},
    {"0f ae 00", CodeSize::Bits64, "fxsave length 3 size 4 address 8 mem255:0w"},
};

} // namespace

TEST_CASE("instructions decode to what the manuals say") {
    for (const Golden& golden : kGolden) {
        INFO(std::string{golden.bytes});
        Instruction in{};
        REQUIRE(decode(bytes_of(golden.bytes), golden.code_size, in) == DecodeStatus::Ok);
        const std::string text = describe(in);
        CHECK_MESSAGE(text.starts_with(golden.text), text);
    }
}

TEST_CASE("the end of the bytes asks for more, at every place") {
    for (const char* hex : {"48 81 84 88 00 00 00 00 11 22 33 44", "c4 e3 f9 16 44 24 08 01",
                            "66 67 f0 65 0f c1 44 0d 00", "48 a1 88 77 66 55 44 33 22 11"}) {
        const auto bytes = bytes_of(hex);
        Instruction in;
        REQUIRE(decode(bytes, CodeSize::Bits64, in) == DecodeStatus::Ok);
        for (std::size_t size = 0; size < bytes.size(); ++size)
            CHECK(decode(std::span{bytes}.first(size), CodeSize::Bits64, in) ==
                  DecodeStatus::NeedMoreBytes);
    }
}

TEST_CASE("more than 15 bytes are a general protection fault, not an undefined opcode") {
    CHECK(status_of("66 66 66 66 66 66 66 66 66 66 66 66 66 66 90") == DecodeStatus::Ok);
    CHECK(status_of("66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 90") == DecodeStatus::TooLong);
    CHECK(status_of("66 66 66 66 66 66 66 66 66 66 66 66 66 66 01 c0") == DecodeStatus::TooLong);
    CHECK(status_of("66 66 66 66 66 66 66 66 66 66 66 66 66 66 01") == DecodeStatus::TooLong);
    CHECK(status_of("66 66 66 66 66 66 66 66 66 66 66 66 66 66") == DecodeStatus::NeedMoreBytes);
}

TEST_CASE("LOCK is legal only before a memory destination of some instructions") {
    CHECK(decoded("f0 01 03").lock());
    CHECK(decoded("f0 87 03").lock());
    CHECK(decoded("f0 48 0f c7 0b").lock());
    CHECK(status_of("f0 01 c3") == DecodeStatus::Undefined);       // register
    CHECK(status_of("f0 03 03") == DecodeStatus::Undefined);       // memory is the source
    CHECK(status_of("f0 39 03") == DecodeStatus::Undefined);       // CMP
    CHECK(status_of("f0 0f ba 23 01") == DecodeStatus::Undefined); // BT
    CHECK(status_of("f0 90") == DecodeStatus::Undefined);
}

TEST_CASE("64-bit code lacks some instructions") {
    for (const char* hex : {"06", "27", "37", "60", "62 00", "9a 00 00 00 00 00 00", "c4 00 00 00",
                            "ce", "d4 0a", "d6", "ea 00 00 00 00 00 00", "82 00 00"}) {
        INFO(std::string{hex});
        CHECK(status_of(hex) == DecodeStatus::Undefined);
        CHECK(status_of(hex, CodeSize::Bits32) == DecodeStatus::Ok);
        CHECK(status_of(hex, CodeSize::Bits16) != DecodeStatus::Undefined);
    }
    CHECK(status_of("0f 01 f8", CodeSize::Bits32) == DecodeStatus::Undefined); // SWAPGS
}

TEST_CASE("undefined: UD, EVEX, XOP, 3DNow!, missing operands") {
    for (const char* hex : {"0f 0b",
                            "0f b9 00",
                            "0f ff 00",
                            "62 f1 7c 48 58 c0",
                            "8f e8 78 c0 c0 00",
                            "0f 0f c0 0d",
                            "0f 04",
                            "8d c0",
                            "c4 c1",
                            "8e c8",
                            "8c f8",
                            "0f 20 c8",
                            "44 0f 23 c0",
                            "fe d0",
                            "ff f8",
                            "0f c7 c8",
                            "f3 0f 58",
                            "0f 38 30 c0",
                            "66 c5 f8 58 c0",
                            "48 c5 f8 58 c0"}) {
        INFO(std::string{hex});
        const auto status = status_of(hex);
        CHECK((status == DecodeStatus::Undefined || status == DecodeStatus::NeedMoreBytes));
    }
    CHECK(status_of("62 f1 7c 48 58 c0") == DecodeStatus::Undefined);
    CHECK(status_of("8e c8") == DecodeStatus::Undefined);
}

TEST_CASE("a REX counts only directly before the opcode") {
    CHECK(decoded("48 66 01 c0").operand_size == 2);
    CHECK(decoded("66 48 01 c0").operand_size == 8);
    CHECK((decoded("48 66 01 c0").prefixes & prefix::kRex) == 0);
    CHECK(decoded("41 48 01 c0").operands[0].reg == 0);
}

TEST_CASE("the last of F2 and F3 counts, and both win over 66") {
    CHECK(decoded("66 f3 0f 58 c1").operands[1].size == 16);
    CHECK(decoded("f2 f3 0f 2c c1").memory_access == Access::None);
    CHECK(decoded("f2 f3 a4").rep());
    CHECK(decoded("f3 f2 a6").repne());
    CHECK(decoded("f3 0f 58 00").memory_size == 4);
    CHECK(decoded("66 f2 0f 58 00").memory_size == 8);
}

TEST_CASE("segments: defaults by base, overrides, 64-bit code ignores all but fs and gs") {
    CHECK(decoded("8b 04 24").memory_segment == 2);
    CHECK(decoded("8b 45 00").memory_segment == 2);
    CHECK(decoded("41 8b 45 00").memory_segment == 3); // r13
    CHECK(decoded("26 8b 45 00").memory_segment == 2);
    CHECK(decoded("64 8b 45 00").memory_segment == 4);
    CHECK(decoded("26 8b 45 00", CodeSize::Bits32).memory_segment == 0);
    CHECK(decoded("2e a4", CodeSize::Bits16).memory_segment == 1);
    CHECK(decoded("8b 02", CodeSize::Bits16).memory_segment == 2); // [bp+si]
}

TEST_CASE("sets of general registers") {
    auto in = decoded("01 04 8a"); // add [rdx+rcx*4], eax
    CHECK(in.registers_read == 0b0111);
    CHECK(in.registers_written == 0);
    in = decoded("88 c3"); // mov bl, al: the rest of rbx is kept
    CHECK(in.registers_read == 0b1001);
    CHECK(in.registers_written == 0b1000);
    in = decoded("89 c3"); // mov ebx, eax
    CHECK(in.registers_read == 0b0001);
    in = decoded("88 e5"); // mov ch, ah
    CHECK(in.registers_read == 0b0011);
    CHECK(in.registers_written == 0b0010);
    in = decoded("f7 e1"); // mul ecx
    CHECK(in.registers_read == 0b0011);
    CHECK(in.registers_written == 0b0101);
    in = decoded("a5"); // movsd
    CHECK(in.registers_read == 0xc0);
    in = decoded("f3 a5");
    CHECK(in.registers_written == 0xc2);
    in = decoded("41 57"); // push r15
    CHECK(in.registers_read == 0x8010);
}

TEST_CASE("flags: what a constant count leaves alone") {
    CHECK(decoded("01 c0").flags_written == kAllSix);
    CHECK(decoded("11 c0").flags_read == 1);
    CHECK(decoded("21 c0").flags_undefined == 0x10);
    CHECK(decoded("d1 e0").flags_undefined == 0x10);
    CHECK(decoded("c1 e0 01").flags_undefined == 0x10);
    CHECK(decoded("c1 e0 02").flags_undefined == 0x810);
    CHECK(decoded("c1 e0 20").flags_written == 0);
    CHECK(decoded("48 c1 e0 20").flags_written == kAllSix);
    CHECK(decoded("d3 e0").has(attribute::kFlagsConditional));
    CHECK(decoded("0f 84 00 00 00 00").flags_read == 0x40);
    CHECK(decoded("7f 00").flags_read == 0x8c0);
    CHECK(decoded("f3 a6").has(attribute::kFlagsConditional));
    CHECK_FALSE(decoded("a6").has(attribute::kFlagsConditional));
}

TEST_CASE("branches know their kind and target") {
    CHECK(decoded("74 fe").branch == BranchKind::Conditional);
    CHECK(decoded("74 fe").target(0x1002) == 0x1000);
    CHECK(decoded("e8 fb ff ff ff").branch == BranchKind::Call);
    CHECK(decoded("e8 fb ff ff ff").target(0x1005) == 0x1000);
    CHECK(decoded("eb fe", CodeSize::Bits16).target(0) == 0xfffe);
    CHECK(decoded("ff e0").branch == BranchKind::IndirectJump);
    CHECK(decoded("c3").branch == BranchKind::Return);
    CHECK(decoded("0f 05").branch == BranchKind::Other);
    CHECK(decoded("e2 fe").registers_written == 2);
}

TEST_CASE("vector instructions: alignment, MXCSR, general registers") {
    CHECK(decoded("0f 28 00").has(attribute::kAligned));
    CHECK_FALSE(decoded("0f 10 00").has(attribute::kAligned));
    CHECK(decoded("0f 58 00").has(attribute::kAligned));
    CHECK_FALSE(decoded("c5 f8 58 00").has(attribute::kAligned));
    CHECK(decoded("c5 f8 28 00").has(attribute::kAligned));
    CHECK(decoded("0f 58 00").has(attribute::kMxcsr));
    CHECK_FALSE(decoded("0f 57 c0").has(attribute::kMxcsr));
    CHECK(decoded("66 0f d7 c1").has(attribute::kGprOperand));
    CHECK(decoded("66 0f 7e c0").has(attribute::kGprOperand));
    CHECK_FALSE(decoded("66 0f 7e 00").has(attribute::kGprOperand));
    CHECK(decoded("0f 2e c1").flags_written == kAllSix);
    CHECK(decoded("0f 2a c1").has(attribute::kX87State));
    CHECK(decoded("c5 fd fe c0").feature == IsaFeature::Avx2);
    CHECK(decoded("c5 f9 fe c0").feature == IsaFeature::Avx);
    CHECK(decoded("66 0f f7 c1").memory_base == 7);
    CHECK(decoded("66 0f f7 c1").writes_memory());
}

TEST_CASE("VEX: unused vvvv must be all ones, W and L must fit, 32-bit code has eight registers") {
    CHECK(status_of("c5 f0 10 00") == DecodeStatus::Undefined);
    CHECK(status_of("c4 e1 38 10 00", CodeSize::Bits32) == DecodeStatus::Undefined);
    CHECK(decoded("c4 e1 38 58 c1", CodeSize::Bits32).operands[1].reg == 0);
    CHECK(status_of("c5 fd 6e c0") == DecodeStatus::Undefined);    // L must be 0
    CHECK(status_of("c4 e2 f9 18 00") == DecodeStatus::Undefined); // W must be 0
    CHECK(decoded("c4 e3 79 4a c1 90", CodeSize::Bits32).operands[3].reg == 1);
    CHECK(decoded("c4 e3 79 4a c1 90").operands[3].reg == 9);
    CHECK(decoded("c5 00", CodeSize::Bits32).op == Op::LoadFarPointer);
}

TEST_CASE("a gather's registers must differ") {
    CHECK(status_of("c4 e2 f1 90 04 12") == DecodeStatus::Ok);        // xmm0, xmm2, mask xmm1
    CHECK(status_of("c4 e2 f9 90 04 12") == DecodeStatus::Undefined); // mask xmm0
    CHECK(status_of("c4 e2 f1 90 04 02") == DecodeStatus::Undefined); // index xmm0
    CHECK(status_of("c4 e2 f1 90 00") == DecodeStatus::Undefined);    // no SIB
    const auto in = decoded("c4 e2 f1 90 04 22");                     // index xmm4
    CHECK(in.memory_index == 4);
    CHECK(in.registers_read == 0b100); // base alone
    CHECK(in.has(attribute::kVsib));
}

TEST_CASE("offsets for a re-encoder") {
    const auto in = decoded("66 4c 0f 3a 22 84 88 00 01 00 00 01"); // pinsrq xmm8, [rax+rcx*4+100h]
    CHECK(in.opcode_offset == 4);
    CHECK(in.modrm_offset == 5);
    CHECK(in.displacement_offset() == 7);
    CHECK(in.displacement_size == 4);
    CHECK(in.immediate_offset() == 11);
    CHECK(in.immediate_size == 1);
    CHECK(in.map == OpcodeMap::Map0F3A);
}

} // namespace doppel::cpu::x86
