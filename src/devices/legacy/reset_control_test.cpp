// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "devices/legacy/reset_control.hpp"

using namespace doppel;

TEST_CASE("reset control: the rise of bit 2 resets, as 2 then 6 or 6 at once") {
    int resets = 0;
    devices::ResetControl port{[&] { ++resets; }};
    port.io_write({0, 1}, 0x02);
    CHECK(resets == 0);
    CHECK(port.io_read({0, 1}) == 0x02);
    port.io_write({0, 1}, 0x06);
    CHECK(resets == 1);
    port.io_write({0, 1}, 0x06); // no rise
    CHECK(resets == 1);
    port.reset();
    port.io_write({0, 1}, 0x0e);
    CHECK(resets == 2);
}
