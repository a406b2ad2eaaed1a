// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <random>

#include "block/filter/copy_on_read_node.hpp"
#include "block/filter/dirty_bitmap_node.hpp"
#include "block/filter/throttle_node.hpp"
#include "block/qcow2/qcow2_node.hpp"
#include "block/raw/raw_node.hpp"
#include "block/test_rig.hpp"

using namespace doppel;
using namespace doppel::block;
using namespace doppel::block::filter;
using namespace std::chrono_literals;

namespace {

using Seconds = std::chrono::duration<double>;

struct Rig {
    std::unique_ptr<base::EventLoop> loop = base::EventLoop::create().value();
    std::unique_ptr<IoContext> context = IoContext::create(*loop, IoKind::Threads).value();
    test::PatternOpener opener;
    SimDisk disk;

    template <typename T> Result<T> wait(Task<T> task) { return context->wait(std::move(task)); }
    std::unique_ptr<ImageNode> raw(std::size_t bytes) const {
        return std::make_unique<raw::RawNode>(
            std::make_unique<MemoryNode>(std::vector<std::byte>(bytes)), raw::LooksLikeFormat{});
    }
    std::unique_ptr<ImageNode> overlay(std::uint64_t size, Access access = Access::ReadWrite) {
        if (disk.bytes().empty())
            REQUIRE(wait(qcow2::format().create({context.get(),
                                                 disk.open(),
                                                 size,
                                                 {{"backing_file", "b"}, {"backing_fmt", "raw"}},
                                                 &opener})));
        OpenRequest request{context.get(), disk.open(), {}, &opener};
        request.options.access = access;
        return wait(qcow2::Qcow2Node::open(std::move(request))).value();
    }
};

/// How many operations of a size pass in so many seconds of a clock of our own.
std::uint64_t passed(ThrottleGroup& group, std::uint64_t bytes, double seconds,
                     Direction direction = Direction::Read) {
    TimePoint now{1h};
    const auto end = now + std::chrono::duration_cast<TimePoint::duration>(Seconds{seconds});
    std::uint64_t count = 0;
    while (now < end) {
        const auto wait = group.admit(direction, bytes, now);
        count += wait.count() == 0;
        now += wait;
    }
    return count;
}

std::unique_ptr<ThrottleGroup>
group_of(const std::map<std::string, std::string, std::less<>>& limits) {
    return ThrottleGroup::create(limits).value();
}

} // namespace

TEST_CASE("a throttle group lets its rate pass, and a burst before") {
    CHECK(passed(*group_of({}), 4096, 0.0) == 0);
    // A tenth of a second's worth at once, and the one that fills the bucket.
    CHECK(std::abs(static_cast<double>(passed(*group_of({{"iops-total", "100"}}), 4096, 10)) -
                   1010) <= 2);
    const auto bytes = group_of({{"bps-write", "1M"}});
    CHECK(std::abs(static_cast<double>(passed(*bytes, 64 << 10, 10, Direction::Write)) - 162) <= 2);
    CHECK(bytes->admit(Direction::Read, 1u << 30, TimePoint{1h}).count() == 0); // has no limit
    CHECK(bytes->admit(Direction::Read, 1u << 30, TimePoint{1h}).count() == 0);
    // A burst of 3 s at 1000 each second, then 100; large operations count for several.
    const auto burst = group_of(
        {{"iops-total", "100"}, {"iops-total-max", "1000"}, {"iops-total-max-length", "3"}});
    const auto in_3 = passed(*burst, 512, 3);
    CHECK(in_3 > 2900);
    CHECK(in_3 < 3200);
    const auto sized = group_of({{"iops-read", "100"}, {"iops-size", "4k"}});
    CHECK(std::abs(static_cast<double>(passed(*sized, 16 << 10, 10)) - 253) <= 2);
}

TEST_CASE("limits that make no sense are one sentence") {
    const auto complaint = [](std::map<std::string, std::string, std::less<>> limits) {
        const auto made = ThrottleGroup::create(limits);
        REQUIRE(!made.has_value());
        return made.error().message();
    };
    CHECK(complaint({{"iops", "1"}}).find("no limit 'iops'") != std::string::npos);
    CHECK(complaint({{"iops-total", "many"}}).find("'many'") != std::string::npos);
    CHECK(complaint({{"iops-total", "1"}, {"iops-read", "1"}}).find("excludes") !=
          std::string::npos);
    CHECK(complaint({{"bps-read-max", "9"}}).find("wants bps-read") != std::string::npos);
    CHECK(complaint({{"bps-read", "9"}, {"bps-read-max", "8"}}).find("lower") != std::string::npos);
    CHECK(complaint({{"bps-read", "9"}, {"bps-read-max-length", "8"}}).find("wants") !=
          std::string::npos);
}

TEST_CASE("a throttled image takes the time that its limit says, and no direction waits for the "
          "other") {
    Rig rig;
    const auto group = group_of({{"iops-read", "200"}});
    ThrottleNode node{*rig.context, rig.raw(1u << 20), *group};
    std::vector<std::byte> bytes(4096);
    const auto begin = std::chrono::steady_clock::now();
    std::vector<Task<void>> tasks;
    for (int i = 0; i < 100; ++i)
        tasks.push_back(node.read(0, IoBuffer{bytes}));
    auto writing = node.write(0, IoBuffer{bytes}, Durability::Cached);
    CHECK(writing.done()); // in memory: at once
    REQUIRE(rig.wait(all_of(std::move(tasks))));
    const Seconds took = std::chrono::steady_clock::now() - begin;
    CHECK(took.count() > 0.39); // 100 less the 21 at once, at 200 each second
    CHECK(took.count() < 5);    // the host may be busy
}

TEST_CASE("copy-on-read fetches what lies behind once, and never over what was written") {
    Rig rig;
    rig.opener.behind.assign(300000, std::byte{0xbe});
    std::fill_n(rig.opener.behind.begin() + 65536, 65536, std::byte{0});
    auto node = CopyOnReadNode::create(*rig.context, rig.overlay(1u << 20)).value();
    std::vector<std::byte> model(1u << 20);
    std::ranges::copy(rig.opener.behind, model.begin());
    std::mt19937 random{3};
    for (int i = 0; i < 60; ++i) {
        const auto at = random() % model.size();
        const auto length = 1 + random() % std::min<std::size_t>(100000, model.size() - at);
        std::vector<std::byte> bytes(length, static_cast<std::byte>(i));
        auto reading = node->read(at, IoBuffer{bytes}); // side by side with the write below
        const auto place = random() % (model.size() - 3000);
        const std::vector<std::byte> fresh(3000, static_cast<std::byte>(random()));
        REQUIRE(rig.wait(node->write(place, IoBuffer::of(fresh), Durability::Cached)));
        REQUIRE(rig.wait(std::move(reading)));
        std::ranges::copy(fresh, model.begin() + static_cast<std::ptrdiff_t>(place));
    }
    std::vector<std::byte> all(model.size());
    REQUIRE(rig.wait(node->read(0, IoBuffer{all})));
    CHECK(all == model);
    const auto extent = rig.wait(node->status(0, 300000)).value();
    CHECK(extent.allocated);
    REQUIRE(rig.wait(node->close()));
    rig.opener.behind.assign(300000, std::byte{0xff}); // nobody looks there any more
    node = rig.overlay(0, Access::ReadOnly);
    REQUIRE(rig.wait(node->read(0, IoBuffer{all})));
    CHECK(all == model);
    CHECK(rig.wait(node->check(Repair::None)).value().corruptions == 0);
    CHECK(!CopyOnReadNode::create(*rig.context, std::move(node)).has_value());
}

TEST_CASE("a dirty bitmap in front of any format knows what was changed") {
    Rig rig;
    auto node = DirtyBitmapNode::create(rig.raw(1u << 20), "b", 4096).value();
    using Ranges = std::vector<BitmapStore::MarkedRange>;
    auto* store = node->bitmaps();
    CHECK(store->marked("b").value() == Ranges{});
    std::vector<std::byte> bytes(5000);
    REQUIRE(rig.wait(node->write(4000, IoBuffer{bytes}, Durability::Cached)));
    REQUIRE(rig.wait(node->write_zeroes(100000, 1, Unmap::Allow, Durability::Cached)));
    REQUIRE(rig.wait(node->discard((1u << 20) - 1, 1)));
    CHECK(store->marked("b").value() ==
          Ranges{{0, 12288}, {98304, 102400}, {(1u << 20) - 4096, 1u << 20}});
    REQUIRE(store->add("c", 65536));
    REQUIRE(store->set_recording("b", false));
    REQUIRE(rig.wait(node->write(200000, IoBuffer{bytes}, Durability::Cached)));
    CHECK(store->marked("c").value() == Ranges{{196608, 262144}});
    REQUIRE(store->merge("b", *store, "c"));
    CHECK(store->marked("b").value().size() == 4);
    REQUIRE(store->clear("b"));
    CHECK(store->marked("b").value() == Ranges{});
    REQUIRE(rig.wait(node->resize((1u << 20) + 512)));
    CHECK(store->marked("c").value().back() ==
          BitmapStore::MarkedRange{1u << 20, (1u << 20) + 512});
    CHECK(!store->add("b", 4096));
    CHECK(!store->add("d", 1000));
    CHECK(!store->marked("none"));
    REQUIRE(store->remove("b"));
    CHECK(!store->marked("b"));
}
