// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A fixed VHD: the disk's bytes, and the footer behind them. Owner thread only.
#include <algorithm>
#include <memory>

#include "block/format.hpp"
#include "block/vpc/layout.hpp"

namespace doppel::block::vpc {

class FixedNode final : public ImageNode {
public:
    FixedNode(std::unique_ptr<Node> file, Footer footer)
        : file_{std::move(file)}, footer_{std::move(footer)} {}

    std::string driver() const override { return "vpc"; }
    std::string name() const override { return file_->name(); }
    std::uint64_t size() const override { return footer_.size_bytes; }
    Limits limits() const override { return file_->limits(); }
    bool read_only() const override { return file_->read_only(); }

    Task<void> read(std::uint64_t offset, IoBuffer into) override {
        return file_->read(offset, into);
    }
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override {
        return broken_ ? ready<void>(require_whole()) : file_->write(offset, from, durability);
    }
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override {
        return broken_ ? ready<void>(require_whole())
                       : file_->write_zeroes(offset, length, unmap, durability);
    }
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override {
        return broken_ ? ready<void>(require_whole()) : file_->discard(offset, length);
    }
    Task<void> flush() override { return file_->flush(); }
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override {
        return file_->status(offset, length);
    }
    Task<void> resize(std::uint64_t size_bytes) override;
    Task<void> close() override { return file_->close(); }
    Node* file() override { return file_.get(); }
    std::optional<std::uint64_t> allocated_bytes() const override {
        return file_->allocated_bytes();
    }
    Task<std::vector<Placement>> place(std::uint64_t offset, std::uint64_t length) override {
        return ready<std::vector<Placement>>(
            std::vector{Placement{offset, std::min(length, size() - offset)}});
    }
    Task<CheckResult> check(Repair) override {
        CheckResult result; // without a footer it would not have been opened
        result.image_end_offset = size() + kFooterBytes;
        return ready<CheckResult>(result);
    }
    ImageInfo info() const override;

private:
    std::unique_ptr<Node> file_;
    Footer footer_;
};

} // namespace doppel::block::vpc
