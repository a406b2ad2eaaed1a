// SPDX-License-Identifier: Apache-2.0
/// Instruction tests against the real CPU: every encoding with edge values, then random ones.
#include <cstdlib>
#include <string>

#include <doctest/doctest.h>

#include "tests/oracle/comparison.hpp"
#include "tests/oracle/generator.hpp"

using namespace doppel;
using namespace doppel::oracle;

namespace {

#ifndef DOPPEL_ORACLE_ENGINE
#define DOPPEL_ORACLE_ENGINE "interpreter"
#endif

std::unique_ptr<Comparison> compare_with_engine() {
    auto engine = find_engine(DOPPEL_ORACLE_ENGINE);
    REQUIRE(engine);
    auto comparison = Comparison::create(*engine);
    REQUIRE(comparison);
    return std::move(*comparison);
}

void report(const Comparison& comparison) {
    for (const auto& text : comparison.reports())
        MESSAGE(text);
    MESSAGE(comparison.cases(), " cases, ", comparison.faults(), " of them faults");
    CHECK(comparison.differences() == 0);
}

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
    const char* text = std::getenv(variable);
    return text != nullptr ? std::strtoull(text, nullptr, 0) : otherwise;
}

void every_encoding(Mode mode, std::uint64_t rounds) {
    auto comparison = compare_with_engine();
    Random random{number_from("DOPPEL_SEED", 1)};
    Encodings encodings{mode};
    for (auto code = encodings.next(); !code.empty(); code = encodings.next())
        for (std::uint64_t round = 0; round < rounds; ++round)
            if (const auto test = make_case(code, mode, random))
                comparison->add(*test);
    comparison->flush();
    report(*comparison);
    CHECK(comparison->cases() > 100'000);
}

void random_instructions(Mode mode, std::uint64_t count) {
    auto comparison = compare_with_engine();
    Random random{number_from("DOPPEL_SEED", 2)};
    while (comparison->cases() < count)
        if (const auto test = random_case(mode, random))
            comparison->add(*test);
    comparison->flush();
    report(*comparison);
}

} // namespace

TEST_CASE("every encoding of 64-bit code does what the CPU does") {
    every_encoding(Mode::Bits64, number_from("DOPPEL_ROUNDS", 2));
}
TEST_CASE("every encoding of 32-bit code does what the CPU does") {
    every_encoding(Mode::Bits32, number_from("DOPPEL_ROUNDS", 1));
}
TEST_CASE("random 64-bit instructions do what the CPU does") {
    random_instructions(Mode::Bits64, number_from("DOPPEL_CASES", 400'000));
}
TEST_CASE("random 32-bit instructions do what the CPU does") {
    random_instructions(Mode::Bits32, number_from("DOPPEL_CASES", 200'000));
}
TEST_CASE("every encoding of 16-bit code does what the CPU does") {
    every_encoding(Mode::Bits16, number_from("DOPPEL_ROUNDS", 1));
}
TEST_CASE("random 16-bit instructions do what the CPU does") {
    random_instructions(Mode::Bits16, number_from("DOPPEL_CASES", 100'000));
}
