// SPDX-License-Identifier: Apache-2.0
/// Random operations on an image and on a plain array: they never disagree, and the image's own
/// check never finds anything.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <map>

#include "block/codec/codec.hpp"
#include "block/qcow2/test_rig.hpp"

using namespace doppel;
using namespace doppel::block;
using namespace doppel::block::qcow2;

namespace {

struct Form {
    const char* name;
    std::uint64_t size;
    OptionValues options;
};

const std::vector<Form> kForms{
    {"usual", 3u << 20, {}},
    {"small-clusters", 300u << 10, {{"cluster_size", "512"}}},
    {"large-clusters", 20u << 20, {{"cluster_size", "2M"}}},
    {"old", 3u << 20, {{"compat", "0.10"}, {"cluster_size", "4k"}}},
    {"one-bit", 300u << 10, {{"refcount_bits", "1"}, {"cluster_size", "1k"}}},
    {"wide", 300u << 10, {{"refcount_bits", "64"}, {"cluster_size", "512"}}},
    {"lazy", 3u << 20, {{"lazy_refcounts", "on"}, {"cluster_size", "4k"}}},
    {"subclusters", 5u << 20, {{"extended_l2", "on"}, {"cluster_size", "16k"}}},
    {"zstd", 3u << 20, {{"compression_type", "zstd"}, {"cluster_size", "8k"}}},
    {"preallocated", 1u << 20, {{"preallocation", "metadata"}, {"cluster_size", "4k"}}},
};

class Walk {
public:
    Walk(TestRig& rig, const Form& form, unsigned seed)
        : rig_{rig}, form_{form}, random_{seed}, model_(form.size) {
        REQUIRE(rig_.create(disk_, form_.size, form_.options));
        node_ = rig_.open(disk_).value();
    }

    void step() {
        switch (random_() % 16) {
        case 0:
        case 1:
        case 2:
        case 3:
        case 4: return write();
        case 5:
        case 6: return zero();
        case 7: return discard();
        case 8: return compress();
        case 9: return snapshot();
        case 10: return resize();
        case 11: return reopen();
        case 12: REQUIRE(rig_.wait(node_->flush())); return;
        default: return compare_part();
        }
    }

    void finish() {
        compare(0, model_.size());
        check();
        REQUIRE(rig_.wait(node_->close()));
    }
    const std::vector<std::byte>& image() const { return disk_.bytes(); }
    const std::vector<std::byte>& model() const { return model_; }

private:
    std::pair<std::uint64_t, std::uint64_t> range(std::uint64_t most) {
        const auto begin = random_() % model_.size();
        return {begin, 1 + random_() % std::min<std::uint64_t>(most, model_.size() - begin)};
    }
    void write() {
        const auto [at, length] = range(random_() % 3 == 0 ? 200000 : 5000);
        const auto bytes = random_bytes(random_, length);
        REQUIRE(rig_.wait(node_->write(at, IoBuffer::of(bytes), Durability::Cached)));
        std::ranges::copy(bytes, model_.begin() + static_cast<std::ptrdiff_t>(at));
    }
    void zero() {
        const auto [at, length] = range(300000);
        const auto unmap = random_() % 2 == 0 ? Unmap::Allow : Unmap::Keep;
        REQUIRE(rig_.wait(node_->write_zeroes(at, length, unmap, Durability::Cached)));
        std::fill_n(model_.begin() + static_cast<std::ptrdiff_t>(at), length, std::byte{0});
    }
    /// Without a backing file what is discarded in whole clusters reads as zeroes.
    void discard() {
        const auto cluster = node_->limits().cluster_bytes;
        const auto [at, length] = range(300000);
        const auto first = (at + cluster - 1) / cluster * cluster;
        const auto last =
            at + length == model_.size() ? model_.size() : (at + length) / cluster * cluster;
        REQUIRE(rig_.wait(node_->discard(at, length)));
        if (first < last)
            std::fill_n(model_.begin() + static_cast<std::ptrdiff_t>(first), last - first,
                        std::byte{0});
    }
    void compress() {
        const auto cluster = node_->limits().cluster_bytes;
        const auto at = random_() % model_.size() / cluster * cluster;
        if (at + cluster > model_.size())
            return;
        const auto bytes = random_bytes(random_, cluster);
        const auto packed = node_->compression() == CompressionKind::Zstd
                                ? codec::zstd(bytes, cluster, codec::Effort::Fast)
                                : codec::deflate(bytes, cluster, codec::Effort::Fast);
        if (packed.empty())
            return;
        REQUIRE(rig_.wait(node_->write_compressed(at, packed)));
        std::ranges::copy(bytes, model_.begin() + static_cast<std::ptrdiff_t>(at));
    }
    void snapshot() {
        if (form_.options.contains("refcount_bits") && form_.options.at("refcount_bits") == "1")
            return; // counts to one
        const auto name = std::to_string(random_() % 3);
        if (!snapshots_.contains(name)) {
            REQUIRE(rig_.wait(node_->create_snapshot(name, 1'700'000'000'000'000'000)));
            snapshots_[name] = model_;
        } else if (random_() % 2 == 0) {
            REQUIRE(rig_.wait(node_->delete_snapshot(name)));
            snapshots_.erase(name);
        } else if (form_.options.contains("compat") && snapshots_[name].size() != model_.size()) {
            CHECK(!rig_.wait(node_->apply_snapshot(name)));
        } else {
            REQUIRE(rig_.wait(node_->apply_snapshot(name)));
            model_ = snapshots_[name];
        }
        check();
    }
    void resize() {
        const auto size = (1 + random_() % (form_.size * 2 / 512)) * 512;
        REQUIRE(rig_.wait(node_->resize(size)));
        model_.resize(size);
    }
    void reopen() {
        REQUIRE(rig_.wait(node_->close()));
        node_.reset();
        node_ = rig_.open(disk_).value();
        check();
    }
    void compare_part() {
        const auto [at, length] = range(100000);
        compare(at, length);
    }
    void compare(std::uint64_t at, std::uint64_t length) {
        std::vector<std::byte> got(length);
        REQUIRE(rig_.wait(node_->read(at, IoBuffer{got})));
        REQUIRE(
            std::equal(got.begin(), got.end(), model_.begin() + static_cast<std::ptrdiff_t>(at)));
    }
    void check() {
        REQUIRE(rig_.wait(node_->flush()));
        REQUIRE(rig_.wait(node_->flush())); // what was freed is written now
        if (form_.options.contains("lazy_refcounts"))
            return; // only true after close
        const auto result = rig_.wait(node_->check(Repair::None)).value();
        if (!result.findings.empty())
            MESSAGE(form_.name << ": " << result.findings.front());
        REQUIRE(result.corruptions == 0);
        REQUIRE(result.leaks == 0);
    }

    TestRig& rig_;
    const Form& form_;
    std::mt19937 random_;
    std::vector<std::byte> model_;
    SimDisk disk_;
    std::unique_ptr<Qcow2Node> node_;
    std::map<std::string, std::vector<std::byte>> snapshots_;
};

void keep(const std::string& path, const std::vector<std::byte>& bytes) {
    std::ofstream{path, std::ios::binary}.write(reinterpret_cast<const char*>(bytes.data()),
                                                static_cast<std::streamsize>(bytes.size()));
}

} // namespace

TEST_CASE("random operations agree with a plain array, whatever the image's form") {
    TestRig rig;
    const char* folder = std::getenv("DOPPEL_KEEP_IMAGES"); // tests/block has qemu-img look at them
    for (const auto& form : kForms) {
        INFO("form " << form.name);
        Walk walk{rig, form, 1};
        for (int i = 0; i < 300; ++i)
            walk.step();
        walk.finish();
        if (folder != nullptr) {
            keep(std::string{folder} + "/" + form.name + ".qcow2", walk.image());
            keep(std::string{folder} + "/" + form.name + ".raw", walk.model());
        }
    }
}
