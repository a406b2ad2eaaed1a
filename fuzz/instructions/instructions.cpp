// SPDX-License-Identifier: Apache-2.0
/// Endless instruction tests against the real CPU: an input is a seed of a batch of random cases,
/// or, from nine bytes on, also an instruction that is tried with many register contents. What
/// differs is printed with its bytes and registers; the kept input repeats it. DOPPEL_ENGINE names
/// the engine, the interpreter unless given.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>

#include "tests/oracle/comparison.hpp"
#include "tests/oracle/generator.hpp"

using namespace doppel::oracle;

namespace {

constexpr unsigned kRounds = 128;

Comparison& comparison() {
    static const auto kept = [] {
        const char* const name = std::getenv("DOPPEL_ENGINE");
        const auto engine = find_engine(name != nullptr ? name : "interpreter");
        if (!engine) {
            std::fprintf(stderr, "%s\n", engine.error().message().c_str());
            std::abort();
        }
        auto made = Comparison::create(*engine);
        if (!made) {
            std::fprintf(stderr, "%s\n", made.error().message().c_str());
            std::abort();
        }
        return std::move(*made);
    }();
    return *kept;
}

} // namespace

// NOLINTNEXTLINE(readability-identifier-naming): the name is the fuzzer's.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::uint64_t seed = size;
    std::memcpy(&seed, data, size < 8 ? size : 8);
    const Mode mode = (seed & 1) != 0 ? Mode::Bits32 : Mode::Bits64;
    Random random{seed};
    Comparison& compared = comparison();
    for (unsigned round = 0; round < kRounds; ++round) {
        const auto test =
            size > 8 ? make_case({data + 8, size - 8}, mode, random) : random_case(mode, random);
        if (test)
            compared.add(*test);
    }
    compared.flush();
    if (compared.differences() == 0)
        return 0;
    for (const auto& text : compared.reports())
        std::fprintf(stderr, "%s\n", text.c_str());
    std::fprintf(stderr, "seed %#llx\n", static_cast<unsigned long long>(seed));
    std::abort();
}
