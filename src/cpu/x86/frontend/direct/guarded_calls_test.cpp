// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/guarded_calls.hpp"

#include <doctest/doctest.h>

namespace {

using doppel::cpu::x86::frontend::GuardedCalls;

constexpr std::uint64_t kPage = 7, kRoot = 0x1000, kOther = 0x2000;
bool is_there(const GuardedCalls::Call&) { return true; }
bool is_gone(const GuardedCalls::Call&) { return false; }

} // namespace

TEST_CASE("a guarded function is active until its way back is gone") {
    GuardedCalls calls;
    CHECK_FALSE(calls.any_active(kPage, kRoot, is_there));
    calls.add(kPage, {.root = kRoot, .slot = 0x8000, .to = 0x400010});
    CHECK(calls.any_active(kPage, kRoot, is_there));
    CHECK_FALSE(calls.any_active(kPage + 1, kRoot, is_there));
    CHECK_FALSE(calls.any_active(kPage, kRoot, is_gone));
    CHECK_FALSE(calls.any_active(kPage, kRoot, is_there)); // it does not come back
}

TEST_CASE("one of two guarded functions returns") {
    GuardedCalls calls;
    calls.add(kPage, {.root = kRoot, .slot = 0x8000, .to = 0x400010});
    calls.add(kPage, {.root = kRoot, .slot = 0x9000, .to = 0x400010});
    const auto one = [](const GuardedCalls::Call& call) { return call.slot == 0x9000; };
    CHECK(calls.any_active(kPage, kRoot, one));
    CHECK_FALSE(calls.any_active(kPage, kRoot, is_gone));
}

TEST_CASE("what was called in another address space is not looked for in this one") {
    GuardedCalls calls;
    calls.add(kPage, {.root = kOther, .slot = 0x8000, .to = 0x400010});
    CHECK_FALSE(calls.any_active(kPage, kRoot, is_gone));
    CHECK(calls.any_active(kPage, kOther, is_there));
}

TEST_CASE("who is called very often, or goes on in the midst, is active for good") {
    GuardedCalls calls;
    for (std::uint64_t i = 0; i < 64; ++i)
        calls.add(kPage, {.root = kRoot, .slot = 0x8000, .to = 0x400010});
    calls.add_for_good(kPage + 1);
    CHECK(calls.any_active(kPage, kOther, is_gone));
    CHECK(calls.any_active(kPage + 1, kRoot, is_gone));
}

TEST_CASE("guards that were placed before a call can be told") {
    GuardedCalls calls;
    const auto before = calls.count();
    calls.add(kPage, {.root = kRoot, .slot = 0x8000, .to = 0x400010});
    const auto since = calls.count();
    CHECK(since != before);
    calls.add(kPage, {.root = kRoot, .slot = 0x8000, .to = 0x400010}); // there are none any more
    CHECK(calls.count() == since);
    calls.add_for_good(kPage);
    CHECK(calls.count() != since);
}
