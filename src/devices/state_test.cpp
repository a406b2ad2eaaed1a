// SPDX-License-Identifier: Apache-2.0
/// Save and load of every device: one test for all. A device joins by a `make` overload below; the
/// last case fails when a header declares a StatefulDevice that has none.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <set>

#include "devices/state_test_list.hpp"

using namespace doppel;
using namespace doppel::devices;
using namespace doppel::devices::test;

namespace {

std::vector<std::byte> saved(const Device& device) {
    state::Encoder encoder;
    device.save(encoder);
    return encoder.take();
}

bool load(Device& device, std::span<const std::byte> bytes) {
    state::Decoder decoder{bytes};
    return device.load(decoder).has_value();
}

/// A guest that knows nothing and tries everything; time passes meanwhile.
void hammer(Subject& subject, World& world, std::uint32_t seed, int accesses) {
    std::mt19937 random{seed};
    for (int i = 0; i < accesses && !subject.ranges.empty(); ++i) {
        const auto& range = subject.ranges[random() % subject.ranges.size()];
        const auto size = static_cast<std::uint8_t>(
            range.min_size << (random() % 4 % static_cast<unsigned>(range.size_steps)));
        const auto offset = range.bytes <= size ? 0 : random() % (range.bytes / size) * size;
        const auto mask = size == 8 ? ~0ull : (1ull << (size * 8)) - 1;
        const auto value = (std::uint64_t{random()} << 32 | random()) & mask;
        if (random() % 3 == 0)
            range.handler->io_read({offset, size});
        else
            range.handler->io_write({offset, size}, random() % 4 ? value & 0xff : value);
        if (random() % 16 == 0)
            world.time.advance_to(world.time.now_ns() + random() % 5'000'000);
    }
}

} // namespace

TEST_CASE("every device: save, load into a fresh one, save gives the same bytes") {
    for (const auto& entry : all_devices()) {
        CAPTURE(entry.name);
        for (std::uint32_t seed = 0; seed < 20; ++seed) {
            World world;
            auto original = entry.make(world);
            hammer(original, world, seed, seed == 0 ? 0 : 300);
            auto copy = entry.make(world);
            hammer(copy, world, seed + 1000, 50);
            const auto before = saved(*original.device); // the copy may have moved time on
            state::Decoder decoder{before};
            const auto loaded = copy.device->load(decoder);
            if (!loaded)
                FAIL(loaded.error().message());
            CHECK(decoder.remaining() == 0);
            CHECK(saved(*copy.device) == before);
        }
    }
}

TEST_CASE("every device: reset leaves a state that saves like a fresh device's") {
    for (const auto& entry : all_devices()) {
        CAPTURE(entry.name);
        if (entry.keeps_state_on_reset)
            continue;
        World world;
        auto device = entry.make(world);
        hammer(device, world, 7, 300);
        device.device->reset();
        auto fresh = entry.make(world);
        fresh.device->reset();
        CHECK(saved(*device.device) == saved(*fresh.device));
    }
}

TEST_CASE("every device: truncated states are refused and leave the device as it was") {
    for (const auto& entry : all_devices()) {
        CAPTURE(entry.name);
        World world;
        auto device = entry.make(world);
        hammer(device, world, 3, 300);
        const auto bytes = saved(*device.device);
        const std::size_t step = std::max<std::size_t>(1, bytes.size() / 500);
        for (std::size_t length = 0; length < bytes.size(); length += step)
            REQUIRE(!load(*device.device, std::span{bytes}.first(length)));
        CHECK(saved(*device.device) == bytes);
    }
}

TEST_CASE("every device: flipped bytes are refused or give a device that goes on working") {
    for (const auto& entry : all_devices()) {
        CAPTURE(entry.name);
        World world;
        auto device = entry.make(world);
        hammer(device, world, 5, 300);
        const auto bytes = saved(*device.device);
        std::mt19937 random{99};
        const std::size_t step = std::max<std::size_t>(1, bytes.size() / 300);
        for (std::size_t i = 0; i < bytes.size(); i += step) {
            auto broken = bytes;
            broken[i] ^= static_cast<std::byte>(1 + random() % 255);
            if (!load(*device.device, broken))
                continue;
            const auto again = saved(*device.device);
            REQUIRE(load(*device.device, again));
            REQUIRE(saved(*device.device) == again);
            hammer(device, world, static_cast<std::uint32_t>(i), 20);
        }
    }
}

TEST_CASE("every class that is a StatefulDevice stands in the list of this test") {
    const std::filesystem::path root{"src"};
    if (!std::filesystem::exists(root / "devices/device.hpp"))
        FAIL("run this test in the source tree");
    std::set<std::string> listed;
    for (const auto& entry : all_devices())
        listed.insert(entry.name);
    for (const auto& file : std::filesystem::recursive_directory_iterator{root / "devices"}) {
        if (file.path().extension() != ".hpp")
            continue;
        std::ifstream stream{file.path()};
        for (std::string line; std::getline(stream, line);) {
            const auto base = line.find(": public Stateful");
            if (!line.starts_with("class ") || base == std::string::npos)
                continue;
            const auto begin = line.find('<', base) + 1;
            const auto name = line.substr(begin, line.find('>', begin) - begin);
            CAPTURE(name);
            CHECK(listed.contains(name));
        }
    }
}
