// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What the tests of clustered formats share: random operations held against a plain array.
#include <algorithm>

#include "block/test_power_cuts.hpp"

namespace doppel::block::test {

/// Random operations on an image and on a plain array.
class Walk {
public:
    Walk(Rig& rig, const Form& form, unsigned seed) : rig_{rig}, form_{form}, random_{seed} {
        model_ = rig_.create(disk_, form_);
        node_ = rig_.open(disk_).value();
        REQUIRE(node_->size() == model_.size());
    }

    void step() {
        switch (random_() % 14) {
        case 0:
        case 1:
        case 2:
        case 3:
        case 4: return write();
        case 5:
        case 6: return zero();
        case 7: return discard();
        case 8: return resize();
        case 9: return reopen();
        case 10: REQUIRE(rig_.wait(node_->flush())); return;
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
    auto at(std::uint64_t offset) { return model_.begin() + static_cast<std::ptrdiff_t>(offset); }
    void write() {
        const auto [offset, length] = range(random_() % 3 == 0 ? 200000 : 5000);
        const auto bytes = random_bytes(random_, length);
        REQUIRE(rig_.wait(node_->write(offset, IoBuffer::of(bytes), Durability::Cached)));
        std::ranges::copy(bytes, at(offset));
    }
    void zero() {
        const auto [offset, length] = range(300000);
        const auto unmap = random_() % 2 == 0 ? Unmap::Allow : Unmap::Keep;
        REQUIRE(rig_.wait(node_->write_zeroes(offset, length, unmap, Durability::Cached)));
        std::fill_n(at(offset), length, std::byte{0});
    }
    /// Afterwards each byte is as before or zero.
    void discard() {
        const auto [offset, length] = range(300000);
        REQUIRE(rig_.wait(node_->discard(offset, length)));
        std::vector<std::byte> got(length);
        REQUIRE(rig_.wait(node_->read(offset, IoBuffer{got})));
        for (std::size_t i = 0; i < length; ++i)
            if (got[i] != *at(offset + i))
                REQUIRE(got[i] == std::byte{0});
        std::ranges::copy(got, at(offset));
    }
    void resize() {
        const auto size = (1 + random_() % (form_.size * 2 / 512)) * 512;
        const auto done = rig_.wait(node_->resize(size));
        if (!done && done.error().code == Errc::Unsupported)
            return;
        if (!done)
            MESSAGE(done.error().message());
        REQUIRE(done);
        model_.resize(size);
        REQUIRE(node_->size() == size);
    }
    void reopen() {
        REQUIRE(rig_.wait(node_->close()));
        node_.reset();
        node_ = rig_.open(disk_).value();
        REQUIRE(node_->size() == model_.size());
        check();
    }
    void compare_part() {
        const auto [offset, length] = range(100000);
        compare(offset, length);
    }
    void compare(std::uint64_t offset, std::uint64_t length) {
        std::vector<std::byte> got(length);
        REQUIRE(rig_.wait(node_->read(offset, IoBuffer{got})));
        REQUIRE(std::equal(got.begin(), got.end(), at(offset)));
    }
    void check() {
        REQUIRE(rig_.wait(node_->flush()));
        const auto result = rig_.wait(node_->check(Repair::None)).value();
        if (!result.findings.empty())
            MESSAGE(std::string{form_.name} << ": " << result.findings.front());
        REQUIRE(result.corruptions == 0);
        REQUIRE(result.leaks == 0);
    }

    Rig& rig_;
    const Form& form_;
    std::mt19937 random_;
    std::vector<std::byte> model_;
    SimDisk disk_;
    std::unique_ptr<ImageNode> node_;
};

/// DOPPEL_KEEP_IMAGES: a folder for the images and what they must show, for other readers.
inline void random_operations(const Format& format, const std::vector<Form>& forms) {
    Rig rig{format};
    const char* folder = std::getenv("DOPPEL_KEEP_IMAGES");
    const int steps = wanted("DOPPEL_RANDOM_STEPS", 250);
    for (const auto& form : forms) {
        INFO("form " << std::string{form.name});
        Walk walk{rig, form, 1};
        for (int i = 0; i < steps; ++i)
            walk.step();
        walk.finish();
        if (folder == nullptr)
            continue;
        if (form.backed)
            continue; // others would not find what stands behind it
        const auto base = std::string{folder} + "/" + form.name;
        keep(base + "." + std::string{format.name}, walk.image());
        keep(base + ".raw", walk.model());
    }
}

} // namespace doppel::block::test
