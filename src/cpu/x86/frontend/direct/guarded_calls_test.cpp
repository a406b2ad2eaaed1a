// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/guarded_calls.hpp"

#include <doctest/doctest.h>

namespace {

using doppel::cpu::x86::frontend::GuardedCalls;

constexpr GuardedCalls::Page kPage{.root = 0x1000, .linear = 0x40'0000},
    kOtherSpace{.root = 0x2000, .linear = 0x40'0000};
constexpr std::uint64_t kRam = 7;
constexpr GuardedCalls::Call kCall{.guard = 0x100, .slot = 0x8000, .to = 0x50'0010};
bool is_there(const GuardedCalls::Call&) { return true; }
bool is_gone(const GuardedCalls::Call&) { return false; }
bool is_active(GuardedCalls& calls, const GuardedCalls::Page& page, std::uint64_t ram_page,
               const GuardedCalls::IsThere& is_there) {
    return calls.is_active(page, ram_page, kCall.guard, is_there);
}

} // namespace

TEST_CASE("a guarded function is active until its way back is gone") {
    GuardedCalls calls;
    CHECK_FALSE(is_active(calls, kPage, kRam, is_there));
    calls.add(kPage, kCall);
    CHECK(is_active(calls, kPage, kRam, is_there));
    CHECK(is_active(calls, kPage, kRam + 1, is_there)); // which the kernel may move
    CHECK_FALSE(is_active(calls, {.root = 0x1000, .linear = 0x40'1000}, kRam, is_there));
    CHECK_FALSE(is_active(calls, kOtherSpace, kRam, is_there));
    CHECK_FALSE(calls.is_active(kPage, kRam, kCall.guard + 1, is_there)); // another function
    CHECK_FALSE(is_active(calls, kPage, kRam, is_gone));
    CHECK_FALSE(is_active(calls, kPage, kRam, is_there)); // it does not come back
}

TEST_CASE("one of two guarded functions returns") {
    GuardedCalls calls;
    calls.add(kPage, kCall);
    calls.add(kPage, {.guard = 0x100, .slot = 0x9000, .to = kCall.to});
    const auto other = [](const GuardedCalls::Call& call) { return call.slot == 0x9000; };
    CHECK(is_active(calls, kPage, kRam, other));
    CHECK_FALSE(is_active(calls, kPage, kRam, is_gone));
}

TEST_CASE("who is called very often is active for good") {
    GuardedCalls calls;
    for (std::uint64_t slot = 0; slot < 64; ++slot) {
        CHECK_FALSE(is_active(calls, kPage, kRam, is_gone));
        calls.add(kPage, {.guard = 0x100, .slot = slot, .to = kCall.to});
    }
    CHECK(is_active(calls, kPage, kRam, is_gone));
}

TEST_CASE("who goes on in the midst is active for good, and so is a fork of his") {
    GuardedCalls calls;
    calls.add_for_good(kPage, kRam);
    CHECK(is_active(calls, kPage, kRam + 1, is_gone));
    CHECK(is_active(calls, kOtherSpace, kRam, is_gone));
    CHECK_FALSE(is_active(calls, kOtherSpace, kRam + 1, is_gone));
}

TEST_CASE("guards that were placed before a call can be told") {
    GuardedCalls calls;
    const auto before = calls.count();
    calls.add(kPage, kCall);
    const auto since = calls.count();
    CHECK(since != before);
    calls.add(kPage, kCall); // there are none any more
    CHECK(calls.count() == since);
    calls.add_for_good(kPage, kRam);
    CHECK(calls.count() != since);
}

TEST_CASE("of many pages the calls are forgotten, which is told") {
    GuardedCalls calls;
    constexpr std::uint64_t kMany = 4096;
    for (std::uint64_t i = 0; i < kMany; ++i)
        calls.add({.root = i, .linear = 0x40'0000}, kCall);
    const auto before = calls.count();
    CHECK(is_active(calls, {.root = 1, .linear = 0x40'0000}, kRam, is_there));
    calls.add({.root = kMany, .linear = 0x40'0000}, kCall);
    CHECK(calls.count() != before);
    CHECK_FALSE(is_active(calls, {.root = 1, .linear = 0x40'0000}, kRam, is_there));
    CHECK(is_active(calls, {.root = kMany, .linear = 0x40'0000}, kRam, is_there));
}
