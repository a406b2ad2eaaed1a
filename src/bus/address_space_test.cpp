// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "bus/address_space.hpp"

using namespace doppel::bus;

namespace {

struct Recorder : IoHandler {
    std::vector<std::pair<IoAccess, std::uint64_t>> writes;
    std::uint64_t io_read(IoAccess io) override { return 0x8877665544332211u >> (io.offset * 8); }
    void io_write(IoAccess io, std::uint64_t value) override { writes.push_back({io, value}); }
};

struct Bells : DoorbellHost {
    std::vector<std::pair<std::uint64_t, int>> hung;
    void hang(std::uint64_t address, int eventfd) noexcept override {
        hung.emplace_back(address, eventfd);
    }
    void take_down(std::uint64_t address, int eventfd) noexcept override {
        std::erase(hung, std::pair{address, eventfd});
    }
};

} // namespace

TEST_CASE("an access reaches the mapping that covers it, by offset") {
    AddressSpace space{AddressSpace::Kind::Mmio};
    Recorder device;
    REQUIRE(space.map({0x1000, 8, "device", {}, &device}));
    CHECK(space.read(0x1000, 8) == 0x8877665544332211u);
    CHECK(space.read(0x1002, 2) == 0x4433);
    space.write(0x1004, 4, 0xffff'ffff'0000'0001u);
    REQUIRE(device.writes.size() == 1);
    CHECK(device.writes[0].first.offset == 4);
    CHECK(device.writes[0].second == 1);
}

TEST_CASE("where nothing is mapped reads give all ones and writes vanish") {
    AddressSpace space{AddressSpace::Kind::Pio};
    CHECK(space.read(0x80, 1) == 0xff);
    CHECK(space.read(0x80, 4) == 0xffff'ffff);
    space.write(0x80, 1, 1);
}

TEST_CASE("wide accesses are split in ascending order, narrow and misaligned ones refused") {
    AddressSpace space{AddressSpace::Kind::Pio};
    Recorder device;
    REQUIRE(space.map({0x60, 8, "bytes", {1, 1, false}, &device}));
    CHECK(space.read(0x60, 4) == 0x44332211);
    space.write(0x62, 2, 0xbbaa);
    REQUIRE(device.writes.size() == 2);
    CHECK(device.writes[0].first.offset == 2);
    CHECK(device.writes[0].second == 0xaa);
    CHECK(device.writes[1].second == 0xbb);

    Recorder dwords;
    REQUIRE(space.map({0x100, 8, "dwords", {4, 4, false}, &dwords}));
    CHECK(space.read(0x100, 2) == 0xffff);
    CHECK(space.read(0x102, 4) == 0xffff'ffff);
    space.write(0x100, 1, 0);
    CHECK(dwords.writes.empty());
}

TEST_CASE("an access over the end of a mapping reads ones there") {
    AddressSpace space{AddressSpace::Kind::Pio};
    Recorder device;
    REQUIRE(space.map({0x70, 2, "pair", {1, 1, false}, &device}));
    CHECK(space.read(0x70, 4) == 0xffff2211);
}

TEST_CASE("overlaps are refused and leave the map as it was") {
    AddressSpace space{AddressSpace::Kind::Mmio};
    Recorder device;
    REQUIRE(space.map({0x1000, 0x100, "a", {}, &device}));
    CHECK(!space.map({0x10ff, 1, "b", {}, &device}));
    CHECK(!space.map({0xf00, 0x101, "c", {}, &device}));
    CHECK(!space.map({0x2000, 0, "empty", {}, &device}));
    CHECK(space.mappings().size() == 1);
    space.unmap(0x1000);
    CHECK(!space.is_mapped(0x1000));
}

TEST_CASE("doorbells hang where their mapping is, as long as somebody hangs them") {
    AddressSpace space{AddressSpace::Kind::Mmio};
    Recorder device;
    const Doorbells doorbells{4, {70, 71}};
    const Doorbells none{4, {}};
    REQUIRE(space.map({0x1000, 8, "bells", {}, &device, &doorbells}));
    Bells host;
    space.set_doorbell_host(&host);
    CHECK(host.hung == std::vector<std::pair<std::uint64_t, int>>{{0x1000, 70}, {0x1004, 71}});
    space.unmap(0x1000);
    CHECK(host.hung.empty());
    REQUIRE(space.map({0x2000, 8, "bells", {}, &device, &doorbells}));
    REQUIRE(space.map({0x3000, 8, "no bells", {}, &device, &none}));
    CHECK_FALSE(space.map({0x2004, 8, "in the way", {}, &device, &doorbells}));
    CHECK(host.hung == std::vector<std::pair<std::uint64_t, int>>{{0x2000, 70}, {0x2004, 71}});
    space.set_doorbell_host(nullptr);
    CHECK(host.hung.empty());
    space.unmap(0x2000);
    space.write(0x3000, 4, 1);
    CHECK(device.writes.size() == 1);
}

TEST_CASE("a handler may move its own mapping from inside an access") {
    AddressSpace space{AddressSpace::Kind::Mmio};
    struct Mover : Recorder {
        AddressSpace* space = nullptr;
        void io_write(IoAccess, std::uint64_t value) override {
            space->unmap(0x1000);
            CHECK(space->map({value, 8, "mover", {}, this}));
        }
    } mover;
    mover.space = &space;
    REQUIRE(space.map({0x1000, 8, "mover", {}, &mover}));
    space.write(0x1000, 4, 0x5000);
    CHECK(space.is_mapped(0x5000));
    CHECK(!space.is_mapped(0x1000));
}

TEST_CASE("readers and a writer that remaps all the time do not disturb each other") {
    AddressSpace space{AddressSpace::Kind::Mmio};
    Recorder device;
    REQUIRE(space.map({0x1000, 8, "fixed", {}, &device}));
    std::atomic<bool> stop{false};
    std::atomic<int> wrong{0};
    std::vector<std::thread> readers;
    for (int i = 0; i < 2; ++i)
        readers.emplace_back([&] {
            while (!stop)
                wrong += space.read(0x1000, 1) != 0x11;
        });
    for (std::uint64_t i = 0; i < 2000; ++i) {
        REQUIRE(space.map({0x2000 + i * 16, 8, "moving", {}, &device}));
        space.unmap(0x2000 + i * 16);
    }
    stop = true;
    for (auto& reader : readers)
        reader.join();
    CHECK(wrong == 0);
}
