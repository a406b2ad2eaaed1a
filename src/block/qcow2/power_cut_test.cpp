// SPDX-License-Identifier: Apache-2.0
/// The power fails at any moment of a random history: the image opens, nothing in it is corrupt,
/// every sector that was flushed is there, every other one is old or new, never foreign.
#include <doctest/doctest.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>

#include "block/qcow2/test_rig.hpp"

using namespace doppel;
using namespace doppel::block;
using namespace doppel::block::qcow2;

namespace {

constexpr std::uint64_t kSize = 96u << 10;
constexpr std::uint64_t kSectors = kSize / SimDisk::kSectorBytes;

/// Each write stamps its sectors with its number. A sector may hold what was flushed last, or any
/// stamp that it was given since.
class History {
public:
    History(TestRig& rig, OptionValues options, unsigned seed) : rig_{rig}, random_{seed} {
        SimDisk fresh;
        REQUIRE(rig_.create(fresh, kSize, std::move(options)));
        disk_ = SimDisk::with(fresh.bytes());
        node_ = rig_.open(*disk_).value();
        current_.resize(kSectors);
        note();
    }

    void run(int steps) {
        for (int i = 0; i < steps; ++i)
            step();
        (void)rig_.wait(node_->flush());
        note();
        node_.reset(); // not closed: the power fails
    }

    const SimDisk& disk() const { return *disk_; }

    /// What a sector may hold after a cut at this event.
    std::vector<std::set<std::uint32_t>> allowed(std::size_t event) const {
        std::vector<std::set<std::uint32_t>> sectors(kSectors);
        std::size_t flushed = 0;
        for (std::size_t i = 0; i < notes_.size(); ++i)
            if (notes_[i].flushed && notes_[i].event <= event)
                flushed = i;
        for (std::size_t i = flushed; i < notes_.size(); ++i) {
            for (std::uint64_t s = 0; s < kSectors; ++s)
                sectors[s].insert(notes_[i].content[s]);
            if (notes_[i].event > event)
                break; // the operation that was under way counts, too
        }
        return sectors;
    }

private:
    struct Note {
        std::size_t event = 0;
        bool flushed = false;
        std::vector<std::uint32_t> content;
    };

    void note(bool flushed = true) { notes_.push_back({disk_->events(), flushed, current_}); }

    void step() {
        const auto first = random_() % kSectors;
        const auto count = 1 + random_() % std::min<std::uint64_t>(40, kSectors - first);
        const auto at = first * SimDisk::kSectorBytes;
        const auto length = count * SimDisk::kSectorBytes;
        switch (random_() % 8) {
        case 0: REQUIRE(rig_.wait(node_->flush())); return note();
        case 1:
            REQUIRE(rig_.wait(node_->write_zeroes(
                at, length, random_() % 2 == 0 ? Unmap::Allow : Unmap::Keep, Durability::Cached)));
            std::fill_n(current_.begin() + static_cast<std::ptrdiff_t>(first), count, 0u);
            return note(false);
        default: break;
        }
        const auto stamp = ++stamps_;
        std::vector<std::byte> bytes(length);
        for (std::size_t i = 0; i < length; i += sizeof stamp)
            std::memcpy(bytes.data() + i, &stamp, sizeof stamp);
        REQUIRE(rig_.wait(node_->write(at, IoBuffer::of(bytes), Durability::Cached)));
        std::fill_n(current_.begin() + static_cast<std::ptrdiff_t>(first), count, stamp);
        note(false);
    }

    TestRig& rig_;
    std::mt19937 random_;
    std::unique_ptr<SimDisk> disk_;
    std::unique_ptr<Qcow2Node> node_;
    std::vector<std::uint32_t> current_;
    std::vector<Note> notes_;
    std::uint32_t stamps_ = 0;
};

void examine(TestRig& rig, const History& history, std::size_t event, std::mt19937& random) {
    const auto disk = SimDisk::with(history.disk().after_power_cut(event, random));
    auto node = rig.open(*disk);
    REQUIRE(node.has_value());
    const auto result = rig.wait((*node)->check(Repair::None)).value();
    if (result.corruptions != 0)
        MESSAGE("event " << event << ": " << result.findings.front());
    REQUIRE(result.corruptions == 0);
    std::vector<std::byte> bytes(kSize);
    REQUIRE(rig.wait((*node)->read(0, IoBuffer{bytes})));
    const auto allowed = history.allowed(event);
    for (std::uint64_t sector = 0; sector < kSectors; ++sector) {
        const auto* at = bytes.data() + sector * SimDisk::kSectorBytes;
        std::uint32_t stamp = 0;
        std::memcpy(&stamp, at, sizeof stamp);
        const bool whole = std::memcmp(at, at + 4, SimDisk::kSectorBytes - 4) == 0;
        if (!whole || !allowed[sector].contains(stamp))
            MESSAGE("event " << event << ", sector " << sector << ": stamp " << stamp);
        REQUIRE(whole);
        REQUIRE(allowed[sector].contains(stamp));
    }
}

const std::vector<OptionValues> kForms{
    {{"cluster_size", "512"}},
    {{"cluster_size", "4k"}},
    {{"cluster_size", "4k"}, {"lazy_refcounts", "on"}},
    {{"cluster_size", "16k"}, {"extended_l2", "on"}},
    {{"cluster_size", "1k"}, {"compat", "0.10"}},
    {{"cluster_size", "512"}, {"refcount_bits", "64"}},
};

} // namespace

TEST_CASE("a power cut at any moment leaves an image without corruption or foreign data") {
    const char* wanted = std::getenv("DOPPEL_POWER_CUTS"); // states per form
    const int states = wanted != nullptr ? std::atoi(wanted) : 100;
    TestRig rig;
    std::mt19937 random{11};
    for (const auto& form : kForms) {
        for (int done = 0; done < states;) {
            History history{rig, form, static_cast<unsigned>(random())};
            history.run(40);
            for (int i = 0; i < 50 && done < states; ++i, ++done)
                examine(rig, history, random() % (history.disk().events() + 1), random);
        }
    }
}

TEST_CASE("a disk that fails or fills up is an error, and what was flushed stays") {
    TestRig rig;
    for (std::size_t after = 1; after < 60; ++after) {
        SimDisk disk;
        REQUIRE(rig.create(disk, kSize, {{"cluster_size", "512"}}));
        std::vector<std::byte> bytes(8192, std::byte{7});
        {
            auto node = rig.open(disk).value();
            REQUIRE(rig.wait(node->write(0, IoBuffer::of(bytes), Durability::Durable)));
            disk.fail_after(after, after % 2 == 0 ? EIO : ENOSPC);
            const std::vector<std::byte> more(30000, std::byte{9});
            (void)rig.wait(node->write(20000, IoBuffer::of(more), Durability::Durable));
            (void)rig.wait(node->close());
        }
        disk.heal();
        auto node = rig.open(disk).value();
        CHECK(rig.wait(node->check(Repair::None)).value().corruptions == 0);
        std::vector<std::byte> got(bytes.size());
        REQUIRE(rig.wait(node->read(0, IoBuffer{got})));
        CHECK(got == bytes);
    }
}
