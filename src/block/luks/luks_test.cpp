// SPDX-License-Identifier: Apache-2.0
#include "block/luks/luks_node.hpp"
#include "block/test_power_cuts.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {
/// Not resized: what a disk has just grown by is noise until its zeroes are written.
const test::Form kForm{
    "usual", 96u << 10, {{"key-secret", "secret"}, {"iter-time", "1"}, {"preallocation", "full"}},
    false,   0,         false};
} // namespace

TEST_CASE("luks: a power cut at any moment leaves what was flushed, and nothing foreign") {
    test::power_cuts(luks::format(), {kForm});
}

TEST_CASE("luks: after a resize that failed nothing foreign shows") {
    test::failing_resize(luks::format(), kForm);
}
