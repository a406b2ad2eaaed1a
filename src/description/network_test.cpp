// SPDX-License-Identifier: Apache-2.0
#include "description/network.hpp"

#include <doctest/doctest.h>

using namespace doppel::description;

TEST_CASE("forwards: what people write") {
    const auto same = [](const char* text) { return format_forward(parse_forward(text).value()); };
    CHECK(same("tcp:2222:22") == "tcp:127.0.0.1:2222:22");
    CHECK(same("udp:0.0.0.0:53:5353") == "udp:0.0.0.0:53:5353");
    CHECK(same("tcp:127.0.0.2:1:10.0.2.20:65535") == "tcp:127.0.0.2:1:10.0.2.20:65535");
    for (const auto* const text :
         {"", "tcp", "tcp:22", "tcp:0:22", "tcp:2222:0", "tcp:65536:22", "tcp:2222:22x", "icmp:1:2",
          "tcp:localhost:1:2", "tcp:1:2:3:4:5", "tcp:-1:22", "tcp:127.0.0.1::22"}) {
        CAPTURE(text);
        CHECK(!parse_forward(text));
    }
}

TEST_CASE("subnets: what people write") {
    CHECK(format_subnet(parse_subnet("10.0.2.0/24").value()) == "10.0.2.0/24");
    CHECK(parse_subnet("172.16.0.0/12").value().contains(0xac1f'ffff));
    for (const auto* const text : {"", "10.0.2.0", "10.0.2.0/28", "10.0.2.0/7", "10.0.2.5/24",
                                   "10.0.2/24", "10.0.2.256/24", "10.0.2.0/24x"}) {
        CAPTURE(text);
        CHECK(!parse_subnet(text));
    }
}

TEST_CASE("MAC addresses: what people write") {
    CHECK(parse_mac("52:54:00:12:34:ff").value() == MacAddress{0x52, 0x54, 0, 0x12, 0x34, 0xff});
    for (const auto* const text :
         {"", "52:54:00:12:34", "52:54:00:12:34:5", "52:54:00:12:34:56:", "52-54-00-12-34-56",
          "52:54:00:12:34:5g", "01:00:5e:00:00:01", "00:00:00:00:00:00", "+2:54:00:12:34:56"}) {
        CAPTURE(text);
        CHECK(!parse_mac(text));
    }
}
