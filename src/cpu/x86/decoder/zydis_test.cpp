// SPDX-License-Identifier: Apache-2.0
/// Every opcode with every ModRM byte under sets of prefixes, and random bytes, decoded by us and
/// by Zydis. Where we differ on purpose: zydis_allowed.cpp.
#include <doctest/doctest.h>

#include <array>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cpu/x86/disassembler/zydis_compare.hpp"

namespace doppel::cpu::x86 {
namespace {

using Bytes = std::vector<std::uint8_t>;

/// Counts differences by field, shows a few of each, fails at the end.
class Findings {
public:
    void check(std::span<const std::uint8_t> bytes, CodeSize code_size) {
        ++compared_;
        const auto found = compare_with_zydis(bytes, code_size);
        if (!found.field.empty() && ++counts_[found.field] <= 5)
            FAIL_CHECK(found.field << ": " << found.detail);
    }
    ~Findings() {
        for (const auto& [field, count] : counts_)
            MESSAGE(field << ": " << count << " differences");
        MESSAGE(compared_ << " encodings compared");
    }

private:
    std::map<std::string, long> counts_;
    long compared_ = 0;
};

/// What follows the ModRM byte: SIB, displacement and immediate, whatever is needed.
void add_tail(Bytes& bytes) {
    for (unsigned i = 0; i < 20; ++i)
        bytes.push_back(std::uint8_t(0x35 + i * 0x2f));
    bytes.resize(40, 0x90);
}

bool needs_rex(const Bytes& prefixes) {
    for (const auto byte : prefixes)
        if (byte >= 0x40 && byte < 0x50)
            return true;
    return false;
}

#ifdef DOPPEL_EXHAUSTIVE
constexpr bool kExhaustive = true;
#else
constexpr bool kExhaustive = false;
#endif

void check_map(Findings& findings, CodeSize code_size, const Bytes& start) {
    for (unsigned opcode = 0; opcode < 256; ++opcode)
        for (unsigned modrm = 0; modrm < 256; ++modrm) {
            if (!kExhaustive && (modrm & 3) > 1) // rm 0, 1, 4 (SIB), 5 (displacement)
                continue;
            Bytes bytes = start;
            bytes.push_back(std::uint8_t(opcode));
            bytes.push_back(std::uint8_t(modrm));
            add_tail(bytes);
            findings.check(bytes, code_size);
        }
}

void check_legacy(const std::vector<Bytes>& prefix_sets) {
    Findings findings;
    const std::vector<Bytes> maps = {{}, {0x0f}, {0x0f, 0x38}, {0x0f, 0x3a}};
    for (const auto code_size : {CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64})
        for (const Bytes& prefixes : prefix_sets) {
            if (code_size != CodeSize::Bits64 && needs_rex(prefixes))
                continue;
            for (const Bytes& map : maps) {
                Bytes start = prefixes;
                start.insert(start.end(), map.begin(), map.end());
                check_map(findings, code_size, start);
            }
        }
}

void check_vex(unsigned vvvv) {
    Findings findings;
    for (const auto code_size : {CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64})
        for (unsigned map = 0; map < 5; ++map)
            for (unsigned bits = 0; bits < 16; ++bits) { // W, L, pp
                const unsigned w = bits >> 3;
                const unsigned last = w << 7 | vvvv << 3 | (bits & 7u);
                check_map(findings, code_size,
                          {0xc4, std::uint8_t(0xe0 | map), std::uint8_t(last)});
                if (map == 1 && w == 0)
                    check_map(findings, code_size, {0xc5, std::uint8_t(0x80 | last)});
            }
}

/// Random bytes after a random choice of prefixes and escapes, so that every map is reached.
Bytes random_instruction(std::mt19937_64& random) {
    constexpr std::uint8_t kStarts[] = {0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x64,
                                        0x65, 0x48, 0x41, 0x44, 0x4f, 0x26, 0x3e};
    Bytes bytes;
    const auto choice = random();
    for (unsigned i = 0; i < (choice & 3); ++i)
        bytes.push_back(kStarts[random() % std::size(kStarts)]);
    switch (choice >> 8 & 7) {
    case 0:
    case 1: bytes.push_back(0x0f); break;
    case 2: bytes.insert(bytes.end(), {0x0f, 0x38}); break;
    case 3: bytes.insert(bytes.end(), {0x0f, 0x3a}); break;
    case 4: bytes.push_back(0xc5); break;
    case 5: bytes.push_back(0xc4); break;
    default: break;
    }
    const std::size_t size = (choice >> 16 & 7) == 0 ? bytes.size() + (choice >> 20) % 12 : 40;
    while (bytes.size() < size)
        bytes.push_back(std::uint8_t(random()));
    return bytes;
}

} // namespace

TEST_CASE("legacy maps without prefixes and with each alone") {
    check_legacy({{}, {0x66}, {0xf2}, {0xf3}, {0x48}, {0xf0}, {0x67}});
}

#ifdef DOPPEL_EXHAUSTIVE
TEST_CASE("legacy maps with prefixes combined") {
    check_legacy({{0x66, 0x48},
                  {0xf3, 0x48},
                  {0xf2, 0x48},
                  {0x66, 0xf2},
                  {0x66, 0xf3},
                  {0x40},
                  {0x4f},
                  {0x64},
                  {0x36},
                  {0x26, 0x67}});
}

TEST_CASE("VEX maps with vvvv naming a high register") { check_vex(5); }
TEST_CASE("VEX maps with vvvv naming a low register") { check_vex(12); }
#endif

TEST_CASE("VEX maps with vvvv unused") { check_vex(15); }

TEST_CASE("a million random instructions in each mode") {
    Findings findings;
    std::mt19937_64 random{0x5eed};
    for (unsigned i = 0; i < 1'000'000; ++i) {
        const Bytes bytes = random_instruction(random);
        for (const auto code_size : {CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64})
            findings.check(bytes, code_size);
    }
}

TEST_CASE("runs of prefixes reach the limit of 15 bytes") {
    Findings findings;
    std::mt19937_64 random{0x15};
    constexpr std::uint8_t kPrefixes[] = {0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x64, 0x48};
    for (unsigned i = 0; i < 300'000; ++i) {
        Bytes bytes(8 + random() % 8);
        for (auto& byte : bytes)
            byte = kPrefixes[random() % std::size(kPrefixes)];
        while (bytes.size() < 40)
            bytes.push_back(std::uint8_t(random()));
        findings.check(bytes, CodeSize(i % 3));
    }
}

TEST_CASE("every cut of an instruction asks for more bytes, and no byte behind it matters") {
    std::mt19937_64 random{7};
    long wrong = 0;
    for (unsigned i = 0; i < 300'000; ++i) {
        Bytes bytes = random_instruction(random);
        bytes.resize(48);
        const auto code_size = CodeSize(i % 3);
        Instruction whole{};
        Instruction part{};
        if (decode(bytes, code_size, whole) != DecodeStatus::Ok)
            continue;
        for (std::size_t size = 0; size < whole.length; ++size)
            wrong += decode(std::span{bytes}.first(size), code_size, part) !=
                     DecodeStatus::NeedMoreBytes;
        wrong += decode(std::span{bytes}.first(whole.length), code_size, part) != DecodeStatus::Ok;
        wrong += part.length != whole.length || part.op != whole.op ||
                 part.immediate != whole.immediate || part.displacement != whole.displacement;
    }
    CHECK(wrong == 0);
}

} // namespace doppel::cpu::x86
