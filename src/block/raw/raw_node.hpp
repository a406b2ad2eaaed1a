// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The raw format: the image's bytes are the file's. Owner thread only.
#include <functional>
#include <memory>

#include "block/format.hpp"

namespace doppel::block::raw {

/// Answers whether the first sector, as it would be written, looks like an image format.
using LooksLikeFormat = std::function<bool(std::span<const std::byte>)>;

class RawNode final : public ImageNode {
public:
    /// `guard`: set when the format was guessed, not named. A guest could then write another
    /// format's header and own the next guess, so such writes to sector 0 are refused.
    RawNode(std::unique_ptr<Node> file, LooksLikeFormat guard)
        : file_{std::move(file)}, guard_{std::move(guard)} {}

    std::string driver() const override { return "raw"; }
    std::string name() const override { return file_->name(); }
    std::uint64_t size() const override { return file_->size(); }
    Limits limits() const override { return file_->limits(); }
    bool read_only() const override { return file_->read_only(); }

    Task<void> read(std::uint64_t offset, IoBuffer into) override {
        return file_->read(offset, into);
    }
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override;
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override {
        return file_->write_zeroes(offset, length, unmap, durability);
    }
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override {
        return file_->discard(offset, length);
    }
    Task<void> flush() override { return file_->flush(); }
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override {
        return file_->status(offset, length);
    }
    Task<void> resize(std::uint64_t size_bytes) override { return file_->resize(size_bytes); }
    Task<void> close() override { return file_->close(); }
    Node* file() override { return file_.get(); }
    std::optional<int> descriptor() const override { return file_->descriptor(); }
    std::optional<std::uint64_t> allocated_bytes() const override {
        return file_->allocated_bytes();
    }

    bool can_preallocate(Preallocation how) const override {
        return how != Preallocation::Metadata;
    }
    Task<void> preallocate(std::uint64_t from, Preallocation how) override {
        return take_space(*file_, from, size() - from, how);
    }
    Task<std::vector<Placement>> place(std::uint64_t offset, std::uint64_t length) override {
        return ready<std::vector<Placement>>(std::vector{Placement{offset, length}});
    }

private:
    Task<void> write_guarded(std::uint64_t offset, IoBuffer from, Durability durability);

    std::unique_ptr<Node> file_;
    LooksLikeFormat guard_;
};

/// The row of the format table.
const Format& format();

} // namespace doppel::block::raw
