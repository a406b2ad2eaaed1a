// SPDX-License-Identifier: Apache-2.0
#include "block/drive.hpp"

#include <utility>

#include <fmt/core.h>

namespace doppel::block {

Drive::~Drive() { DOPPEL_VERIFY(in_flight_ == 0, "a drive is destroyed after drain()"); }

Result<void> Drive::check(std::uint64_t offset, std::uint64_t length, Direction direction) const {
    if (direction == Direction::Write && node_->read_only())
        return base::fail(Errc::PermissionDenied,
                          fmt::format("'{}' is open for reading only", node_->name()));
    if (offset > size() || length > size() - offset)
        return base::fail(Errc::OutOfRange,
                          fmt::format("{} bytes at {} pass the end of '{}' ({} bytes)", length,
                                      offset, node_->name(), size()));
    return {};
}

void Drive::finish(const Done& done, Result<void> result) {
    --in_flight_;
    done(std::move(result));
    if (in_flight_ == 0 && drained_)
        std::exchange(drained_, nullptr)();
}

void Drive::submit(std::function<Task<void>()> start, Done done) {
    if (held_) {
        waiting_.push_back({std::move(start), std::move(done)});
        return;
    }
    ++in_flight_;
    start().then(
        [this, done = std::move(done)](Result<void> result) { finish(done, std::move(result)); });
}

void Drive::read(std::uint64_t offset, IoBuffer into, Done done) {
    if (auto good = check(offset, into.size(), Direction::Read); !good)
        return done(std::move(good));
    submit([this, offset, into] { return node_->read(offset, into); }, std::move(done));
}

void Drive::write(std::uint64_t offset, IoBuffer from, Durability durability, Done done) {
    if (auto good = check(offset, from.size(), Direction::Write); !good)
        return done(std::move(good));
    submit([this, offset, from, durability] { return node_->write(offset, from, durability); },
           std::move(done));
}

void Drive::write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                         Durability durability, Done done) {
    if (auto good = check(offset, length, Direction::Write); !good)
        return done(std::move(good));
    submit([this, offset, length, unmap,
            durability] { return node_->write_zeroes(offset, length, unmap, durability); },
           std::move(done));
}

void Drive::discard(std::uint64_t offset, std::uint64_t length, Done done) {
    if (auto good = check(offset, length, Direction::Write); !good)
        return done(std::move(good));
    submit([this, offset, length] { return node_->discard(offset, length); }, std::move(done));
}

void Drive::flush(Done done) {
    submit([this] { return node_->flush(); }, std::move(done));
}

void Drive::drain(std::function<void()> drained) {
    held_ = true;
    if (in_flight_ == 0)
        drained();
    else
        drained_ = std::move(drained);
}

void Drive::resume() {
    held_ = false;
    while (!held_ && !waiting_.empty()) {
        auto next = std::move(waiting_.front());
        waiting_.pop_front();
        submit(std::move(next.start), std::move(next.done));
    }
}

} // namespace doppel::block
