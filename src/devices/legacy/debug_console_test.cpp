// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "devices/legacy/debug_console.hpp"
#include "devices/test_rig.hpp"

using namespace doppel;

TEST_CASE("debug console: bytes come out in order, and a read identifies the port") {
    devices::test::CollectingSink sink;
    devices::DebugConsole console{sink};
    for (const char c : std::string{"ok\n"})
        console.io_write({0, 1}, static_cast<std::uint8_t>(c));
    CHECK(sink.text == "ok\n");
    CHECK(console.io_read({0, 1}) == 0xe9);
}
