// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/event_log.hpp"

#include <doctest/doctest.h>

namespace doppel::cpu::x86 {
namespace {

using Kind = TakenEvent::Kind;

TEST_CASE("the event log keeps the last events, oldest first") {
    EventLog log;
    CHECK(log.size() == 0);
    log.add({.kind = Kind::Interrupt, .vector = 0x20, .rip = 1});
    log.add({.kind = Kind::Exception, .vector = 14, .rip = 2});
    REQUIRE(log.size() == 2);
    CHECK(log[0].rip == 1);
    CHECK(log[1].rip == 2);
    for (std::uint64_t rip = 3; rip < 40; ++rip)
        log.add({.kind = Kind::Exception, .vector = 6, .rip = rip});
    REQUIRE(log.size() == EventLog::kKept);
    CHECK(log[0].rip == 40 - EventLog::kKept);
    CHECK(log[EventLog::kKept - 1].rip == 39);
}

TEST_CASE("events are counted by kind, exceptions by vector") {
    EventLog log;
    log.add({.kind = Kind::Interrupt, .vector = 0x20});
    log.add({.kind = Kind::Exception, .vector = 14});
    log.add({.kind = Kind::Exception, .vector = 14});
    log.add({.kind = Kind::Exception, .vector = 6});
    CHECK(log.exceptions() == 3);
    CHECK(log.exceptions(Vector::PF) == 2);
    CHECK(log.exceptions(Vector::GP) == 0);
    CHECK(log.count(Kind::Interrupt) == 1);
    CHECK(log.count(Kind::Software) == 0);
}

TEST_CASE("an event is described in the words of the manual") {
    CHECK(describe({.kind = Kind::Exception,
                    .vector = 14,
                    .has_error_code = true,
                    .error_code = 2,
                    .rip = 0x1000,
                    .cr2 = 0x8}) == "#PF error 0002 at rip 1000, address 8");
    CHECK(describe({.kind = Kind::Interrupt, .vector = 0xec, .rip = 0xfff0}) ==
          "interrupt 0xec at rip fff0");
    CHECK(describe({.kind = Kind::Exception, .vector = 6, .rip = 5}) == "#UD at rip 5");
}

} // namespace
} // namespace doppel::cpu::x86
