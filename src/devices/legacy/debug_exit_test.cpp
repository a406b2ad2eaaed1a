// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <vector>

#include "devices/legacy/debug_exit.hpp"

using namespace doppel;

TEST_CASE("debug exit: value V ends with (V << 1) | 1, and only the first write counts") {
    std::vector<int> codes;
    devices::DebugExit port{[&](int code) { codes.push_back(code); }};
    port.io_write({0, 4}, 0x10);
    port.io_write({0, 1}, 0x11);
    CHECK(codes == std::vector{0x21});
    CHECK((port.io_read({0, 1}) & 0xff) == 0xff);
    port.reset();
    port.io_write({0, 1}, 0);
    CHECK(codes.back() == 1);
}
