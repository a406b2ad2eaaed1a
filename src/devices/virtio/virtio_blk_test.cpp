// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "block/memory/memory_node.hpp"
#include "devices/virtio/test_driver.hpp"
#include "devices/virtio/virtio_blk.hpp"

using namespace doppel;
using namespace doppel::devices;
using namespace doppel::devices::test;

namespace {

constexpr std::uint64_t kHeader = 0x1000, kData = 0x2000, kStatus = 0x7000;
constexpr std::uint32_t kIn = 0, kOut = 1, kFlush = 4, kGetId = 8, kDiscard = 11, kZeroes = 13;
constexpr std::uint8_t kOk = 0, kIoError = 1, kUnsupported = 2;
constexpr std::uint64_t kDiskBytes = 1u << 20;

/// A disk in memory that says what was asked of it.
class ToldNode final : public block::Node {
public:
    block::MemoryNode bytes{std::vector<std::byte>(kDiskBytes)};
    bool is_read_only = false;
    bool fails = false;
    int flushes = 0, durable_writes = 0, unmaps = 0, discards = 0;

    std::string driver() const override { return "told"; }
    std::string name() const override { return "told"; }
    std::uint64_t size() const override { return bytes.size(); }
    bool read_only() const override { return is_read_only; }
    block::Task<void> read(std::uint64_t offset, block::IoBuffer into) override {
        return fails ? broken() : bytes.read(offset, into);
    }
    block::Task<void> write(std::uint64_t offset, block::IoBuffer from,
                            block::Durability durability) override {
        durable_writes += durability == block::Durability::Durable;
        return fails ? broken() : bytes.write(offset, from, durability);
    }
    block::Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, block::Unmap unmap,
                                   block::Durability durability) override {
        unmaps += unmap == block::Unmap::Allow;
        return bytes.write_zeroes(offset, length, unmap, durability);
    }
    block::Task<void> discard(std::uint64_t offset, std::uint64_t length) override {
        ++discards;
        return bytes.discard(offset, length);
    }
    block::Task<void> flush() override {
        ++flushes;
        return bytes.flush();
    }
    block::Task<block::Extent> status(std::uint64_t offset, std::uint64_t length) override {
        return bytes.status(offset, length);
    }
    block::Task<void> resize(std::uint64_t size_bytes) override { return bytes.resize(size_bytes); }

private:
    static block::Task<void> broken() {
        return block::ready<void>(base::fail(base::Errc::Io, "the disk is broken"));
    }
};

struct Rig {
    explicit Rig(bool read_only = false) : node{new ToldNode} {
        node->is_read_only = read_only;
        drive = std::make_unique<block::Drive>(std::unique_ptr<block::Node>{node});
        driver = std::make_unique<TestDriver>(
            machine, std::make_unique<VirtioBlk>(*drive, VirtioBlk::Options{.serial = "disk-7"},
                                                 *machine.memory, *machine.worker));
    }
    VirtioMachine machine;
    ToldNode* node;
    std::unique_ptr<block::Drive> drive;
    std::unique_ptr<TestDriver> driver;

    void put_header(std::uint32_t type, std::uint64_t sector) {
        driver->put(kHeader, type);
        driver->put(kHeader + 8, sector);
        driver->put(kStatus, std::uint8_t{0xee});
    }
    /// One request with `parts` between header and status; the status that came back.
    std::uint8_t request(std::uint32_t type, std::uint64_t sector,
                         std::vector<TestDriver::Part> parts = {}) {
        put_header(type, sector);
        parts.insert(parts.begin(), {kHeader, 16});
        parts.push_back({kStatus, 1, true});
        driver->add_and_run(0, parts);
        const auto used = driver->take_used(0);
        REQUIRE(used.size() == 1);
        written = used[0].written;
        return *driver->memory().load<std::uint8_t>({kStatus});
    }
    std::uint8_t change(std::uint32_t type, std::uint64_t sector, std::uint32_t sectors,
                        std::uint32_t flags = 0) {
        driver->put(kData, sector);
        driver->put(kData + 8, sectors);
        driver->put(kData + 12, flags);
        return request(type, 0, {{kData, 16}});
    }
    std::uint32_t written = 0;
};

} // namespace

TEST_CASE("virtio-blk: what was written is read back, from scattered buffers") {
    Rig rig;
    rig.driver->start(rig.driver->offered());
    rig.driver->put_text(kData, std::string(700, 'a') + std::string(324, 'b'));
    CHECK(rig.request(kOut, 3, {{kData, 700}, {kData + 700, 324}}) == kOk);
    CHECK(rig.written == 1);
    CHECK(static_cast<char>(rig.node->bytes.bytes()[3 * 512 + 699]) == 'a');
    CHECK(static_cast<char>(rig.node->bytes.bytes()[3 * 512 + 700]) == 'b');
    CHECK(rig.request(kIn, 3, {{0x4000, 100, true}, {0x5000, 924, true}}) == kOk);
    CHECK(rig.written == 1025);
    CHECK(rig.driver->text(0x5000, 924) == std::string(600, 'a') + std::string(324, 'b'));
    CHECK(rig.driver->take_interrupts(0) == 2);
}

TEST_CASE("virtio-blk: configuration tells size, segments, cache mode and limits") {
    Rig rig;
    CHECK(rig.driver->config(0, 8) == kDiskBytes / 512);
    CHECK(rig.driver->config(12, 4) == 254);
    CHECK(rig.driver->config(20, 4) == 512);
    CHECK(rig.driver->config(32, 1) == 1);
    CHECK(rig.driver->config(36, 4) != 0);
    CHECK(rig.machine.pci.read({}, pci::kVendorId) == 0x1042'1af4);
}

TEST_CASE("virtio-blk: flush, serial number, unknown requests") {
    Rig rig;
    rig.driver->start(rig.driver->offered());
    CHECK(rig.request(kFlush, 0) == kOk);
    CHECK(rig.node->flushes == 1);
    CHECK(rig.request(kGetId, 0, {{kData, 20, true}}) == kOk);
    CHECK(rig.driver->text(kData, 7) == std::string("disk-7\0", 7));
    CHECK(rig.request(99, 0) == kUnsupported);
}

TEST_CASE("virtio-blk: write-through where the driver does not flush or chose so") {
    Rig rig;
    rig.driver->start(VIRTIO_F_VERSION_1);
    CHECK(rig.request(kOut, 0, {{kData, 512}}) == kOk);
    CHECK(rig.node->durable_writes == 1);
    rig.driver->start(rig.driver->offered());
    CHECK(rig.request(kOut, 0, {{kData, 512}}) == kOk);
    CHECK(rig.node->durable_writes == 1);
    rig.driver->write(VirtioPci::kDeviceConfig + 32, 1, 0);
    CHECK(rig.request(kOut, 0, {{kData, 512}}) == kOk);
    CHECK(rig.node->durable_writes == 2);
}

TEST_CASE("virtio-blk: discard and write zeroes") {
    Rig rig;
    rig.driver->start(rig.driver->offered());
    rig.driver->put_text(kData, std::string(1024, 'x'));
    REQUIRE(rig.request(kOut, 8, {{kData, 1024}}) == kOk);
    CHECK(rig.change(kZeroes, 9, 1) == kOk);
    CHECK(static_cast<char>(rig.node->bytes.bytes()[8 * 512]) == 'x');
    CHECK(static_cast<char>(rig.node->bytes.bytes()[9 * 512]) == 0);
    CHECK(rig.node->unmaps == 0);
    CHECK(rig.change(kZeroes, 9, 1, 1) == kOk);
    CHECK(rig.node->unmaps == 1);
    CHECK(rig.change(kDiscard, 0, 4) == kOk);
    CHECK(rig.node->discards == 1);
    CHECK(rig.change(kDiscard, 0, 4, 1) == kUnsupported);        // unmap is of write zeroes
    CHECK(rig.change(kZeroes, 0, 4, 2) == kUnsupported);         // reserved
    CHECK(rig.change(kZeroes, 0, 0xffff'ffff) == kIoError);      // more than the limit
    CHECK(rig.change(kZeroes, kDiskBytes / 512, 1) == kIoError); // past the end
    CHECK(rig.request(kDiscard, 0, {{kData, 15}}) == kIoError);
}

TEST_CASE("virtio-blk: errors stay errors of the request") {
    Rig rig;
    rig.driver->start(rig.driver->offered());
    CHECK(rig.request(kIn, kDiskBytes / 512, {{kData, 512, true}}) == kIoError);
    CHECK(rig.request(kIn, ~0ull, {{kData, 512, true}}) == kIoError);
    CHECK(rig.request(kIn, 0, {{kData, 511, true}}) == kIoError);
    CHECK(rig.request(kOut, 0, {{kData, 513}}) == kIoError);
    rig.node->fails = true;
    CHECK(rig.request(kOut, 0, {{kData, 512}}) == kIoError);
    CHECK(rig.written == 1);
    rig.node->fails = false;
    CHECK(rig.request(kOut, 0, {{kData, 512}}) == kOk);
}

TEST_CASE("virtio-blk: a read-only disk says so and refuses writes") {
    Rig rig{true};
    CHECK((rig.driver->offered() & 1u << 5) != 0);
    rig.driver->start(rig.driver->offered());
    CHECK(rig.request(kOut, 0, {{kData, 512}}) == kIoError);
    CHECK(rig.change(kDiscard, 0, 1) == kIoError);
    CHECK(rig.request(kIn, 0, {{kData, 512, true}}) == kOk);
}

TEST_CASE("virtio-blk: a request without header or status needs a reset") {
    for (const auto& parts : {std::vector<TestDriver::Part>{{kHeader, 16}},
                              std::vector<TestDriver::Part>{{kHeader, 15}, {kStatus, 1, true}}}) {
        Rig rig;
        rig.driver->start();
        rig.driver->add_and_run(0, parts);
        CHECK((rig.driver->status() & VIRTIO_STATUS_NEEDS_RESET) != 0);
        rig.driver->start();
        CHECK(rig.request(kFlush, 0) == kOk);
    }
}

TEST_CASE("virtio-blk: while the drive holds requests back, pause waits; then all is done") {
    Rig rig;
    rig.driver->start();
    rig.drive->drain([] {});
    rig.put_header(kOut, 0);
    rig.driver->add_and_run(0, {{kHeader, 16}, {kData, 512}, {kStatus, 1, true}});
    CHECK(rig.driver->take_used(0).empty());
    rig.drive->resume();
    rig.driver->function().pause();
    CHECK(rig.driver->take_used(0).size() == 1);
    rig.driver->function().resume();
}
