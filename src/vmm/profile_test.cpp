// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "vmm/symbols.hpp"

namespace doppel::vmm {
namespace {

constexpr const char* kSystemMap = "0000000000000000 D per_cpu_start\n"
                                   "ffffffff81000000 T _text\n"
                                   "ffffffff81000040 t helper\n"
                                   "ffffffff81000080 D data_is_no_code\n"
                                   "ffffffff81c00000 T entry_SYSCALL_64\n"
                                   "ffffffffc0000000 t in_module\t[loop]\n"
                                   "0000000000401000 T main\n";

TEST_CASE("symbols: an address belongs to the symbol before it") {
    Symbols symbols;
    REQUIRE(symbols.add(kSystemMap));
    CHECK(symbols.name_of(0xffffffff81000000) == "_text");
    CHECK(symbols.name_of(0xffffffff8100003f) == "_text");
    CHECK(symbols.name_of(0xffffffff81000090) == "helper");
    CHECK(symbols.name_of(0xffffffffc0000123) == "in_module [loop]");
    CHECK(symbols.name_of(0x401005) == "main");
    CHECK(symbols.name_of(0x1000) == "");
    CHECK(symbols.name_of(0x7f0012345678) == "");
    CHECK(symbols.name_of(0xffffffff80000000) == "");
}

TEST_CASE("symbols: a kernel that was moved is found by its entry for system calls") {
    Symbols symbols;
    REQUIRE(symbols.add(kSystemMap));
    symbols.place_kernel(0xffffffff81c00000 + 0x1200'0000);
    CHECK(symbols.name_of(0xffffffff93000044) == "helper");
    CHECK(symbols.name_of(0x401005) == "main");
    symbols.place_kernel(0); // there was no kernel yet: as before
    CHECK(symbols.name_of(0xffffffff93000044) == "helper");
}

TEST_CASE("symbols: files that name nothing are refused") {
    Symbols symbols;
    const auto empty = symbols.add("no symbols here\n");
    REQUIRE_FALSE(empty);
    CHECK(empty.error().message().find("System.map") != std::string::npos);
    const auto hidden = symbols.add("0000000000000000 T _text\n0000000000000000 t helper\n");
    REQUIRE_FALSE(hidden);
    CHECK(hidden.error().message().find("as root") != std::string::npos);
    CHECK(symbols.empty());
}

} // namespace
} // namespace doppel::vmm
