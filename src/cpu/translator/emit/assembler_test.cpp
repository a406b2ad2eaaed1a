// SPDX-License-Identifier: Apache-2.0
#include "cpu/translator/emit/assembler.hpp"

#include <array>
#include <string>

#include <doctest/doctest.h>

namespace doppel::cpu::translator {
namespace {

struct Rig {
    std::array<std::uint8_t, 64> memory{};
    Assembler a{memory.data(), memory.data(), memory.size()};
    std::string bytes() const {
        static constexpr char kDigits[] = "0123456789abcdef";
        std::string text;
        for (std::size_t i = 0; i < a.used(); ++i) {
            text += kDigits[memory[i] >> 4];
            text += kDigits[memory[i] & 15];
        }
        return text;
    }
};

// Expected bytes: GNU as 2.40.
TEST_CASE_FIXTURE(Rig, "a base of rsp or r12 takes a SIB byte, rbp or r13 a displacement") {
    a.load(kRax, {kRsp, kNoReg, 1, 8});
    a.load(kRax, {kR12});
    a.load(kRax, {kRbp});
    a.load(kRax, {kR13});
    CHECK(bytes() == "488b442408"
                     "498b0424"
                     "488b4500"
                     "498b4500");
}

TEST_CASE_FIXTURE(Rig, "index, scale and both displacement sizes") {
    a.lea(kR13, {kRdi, kR14, 8, 0x10});
    a.lea(kR13, {kNoReg, kRcx, 4, 0x1000});
    a.store({kRdi, kR14, 1, 0x1234}, kR11);
    CHECK(bytes() == "4e8d6cf710"
                     "4c8d2c8d00100000"
                     "4e899c3734120000");
}

TEST_CASE_FIXTURE(Rig, "immediates take their shortest form") {
    a.mov_imm(kR13, 1);
    a.mov_imm(kR13, ~std::uint64_t{0});
    a.mov_imm(kRax, 0x1122334455667788);
    a.alu_imm(Alu::Cmp, kR13, 4088);
    a.alu_imm(Alu::And, kR14, 63, false);
    CHECK(bytes() == "41bd01000000"
                     "49c7c5ffffffff"
                     "48b88877665544332211"
                     "4981fdf80f0000"
                     "4183e63f");
}

TEST_CASE_FIXTURE(Rig, "RORX names both registers in its VEX prefix") {
    a.rorx(kR14, kR13, 12);
    a.rorx(kRdx, kRdx, 32);
    CHECK(bytes() == "c443fbf0f50c"
                     "c4e3fbf0d220");
}

TEST_CASE_FIXTURE(Rig, "a jump that is bound later leads there") {
    std::uint8_t* const place = a.jump_if_later(Condition::Above);
    a.ret();
    a.bind(place);
    CHECK(bytes() == "0f8701000000c3");
}

TEST_CASE_FIXTURE(Rig, "a link's distance never straddles eight aligned bytes") {
    for (int n = 0; n < 5; ++n) {
        a.byte(0xcc);
        a.align_link(1);
        const auto* const place = a.here() + 1;
        a.jump(a.here());
        CHECK((reinterpret_cast<std::uintptr_t>(place) & 7) <= 4);
    }
}

TEST_CASE_FIXTURE(Rig, "a full buffer stays as it is and says so") {
    for (int i = 0; i < 80; ++i)
        a.byte(0x90);
    CHECK(a.full());
    CHECK(a.used() == memory.size() - 7); // there must be room for 8 bytes
}

TEST_CASE("the padding of a link may come before the compare") {
    for (std::size_t lead = 0; lead < 8; ++lead) {
        alignas(8) std::array<std::uint8_t, 64> code{};
        Assembler a{code.data(), code.data(), code.size()};
        for (std::size_t i = 0; i < lead; ++i)
            a.byte(0x90);
        a.alu(Alu::Cmp, kRax, kRcx); // 3 bytes
        a.align_link_before(3, 2);
        const std::uint8_t* const jump = a.here();
        std::uint8_t* const rel32 = a.jump_if_later(Condition::Equal);
        CHECK(reinterpret_cast<std::uintptr_t>(rel32) / 8 ==
              (reinterpret_cast<std::uintptr_t>(rel32) + 3) / 8);
        CHECK(std::equal(jump - 3, jump, std::begin({0x48, 0x39, 0xc8})));
    }
}

} // namespace
} // namespace doppel::cpu::translator
