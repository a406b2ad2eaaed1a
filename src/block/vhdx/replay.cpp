// SPDX-License-Identifier: Apache-2.0
#include "block/vhdx/replay.hpp"

#include <algorithm>

#include <fmt/core.h>

namespace doppel::block::vhdx {

namespace {

class View final : public Node {
public:
    View(std::unique_ptr<Node> file, Replay replay)
        : file_{std::move(file)}, replay_{std::move(replay)} {}

    std::string driver() const override { return file_->driver(); }
    std::string name() const override { return file_->name(); }
    std::uint64_t size() const override { return replay_.file_bytes; }
    bool read_only() const override { return true; }
    std::optional<std::uint64_t> allocated_bytes() const override {
        return file_->allocated_bytes();
    }

    Task<void> read(std::uint64_t offset, IoBuffer into) override {
        const auto end = offset + into.size();
        DOPPEL_AWAIT_VOID(file_->read(offset, into));
        for (const auto& write : replay_.writes) {
            const auto length = write.page.empty() ? write.zero_bytes : write.page.size();
            const auto begin = std::max(offset, write.offset);
            const auto stop = std::min(end, write.offset + length);
            if (begin >= stop)
                continue;
            const auto part = into.slice(begin - offset, stop - begin);
            if (write.page.empty())
                part.fill(std::byte{0});
            else
                part.copy_from(std::span{write.page}.subspan(begin - write.offset, stop - begin));
        }
        co_return {};
    }
    Task<void> write(std::uint64_t, IoBuffer, Durability) override { return refuse(); }
    Task<void> write_zeroes(std::uint64_t, std::uint64_t, Unmap, Durability) override {
        return refuse();
    }
    Task<void> discard(std::uint64_t, std::uint64_t) override { return refuse(); }
    Task<void> flush() override { return ready<void>({}); }
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override {
        Extent extent;
        extent.length = length;
        extent.host = offset;
        extent.place = this;
        return ready<Extent>(extent);
    }
    Task<void> resize(std::uint64_t) override { return refuse(); }
    Task<void> close() override { return file_->close(); }

private:
    Task<void> refuse() const {
        return ready<void>(base::fail(Errc::PermissionDenied,
                                      fmt::format("'{}' is open for reading only", name())));
    }

    std::unique_ptr<Node> file_;
    Replay replay_;
};

} // namespace

Task<void> replay_into(Node& file, const Replay& replay) {
    if (file.size() < replay.file_bytes)
        DOPPEL_AWAIT_VOID(file.resize(replay.file_bytes));
    for (const auto& write : replay.writes) {
        if (write.page.empty())
            DOPPEL_AWAIT_VOID(
                file.write_zeroes(write.offset, write.zero_bytes, Unmap::Keep, Durability::Cached));
        else
            DOPPEL_AWAIT_VOID(
                file.write(write.offset, IoBuffer::of(write.page), Durability::Cached));
    }
    DOPPEL_AWAIT_VOID(file.flush());
    co_return {};
}

std::unique_ptr<Node> replayed_view(std::unique_ptr<Node> file, Replay replay) {
    return std::make_unique<View>(std::move(file), std::move(replay));
}

} // namespace doppel::block::vhdx
