// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Extents without tables (a part of a file, zeroes), and a part of another node as one of its own:
/// what stands behind an extent. Owner thread only.
#include <algorithm>
#include <memory>

#include "block/image_node.hpp"

namespace doppel::block::vmdk {

/// The bytes of a file from an offset on.
class FlatExtent final : public ImageNode {
public:
    FlatExtent(std::unique_ptr<Node> file, std::uint64_t begin, std::uint64_t size_bytes)
        : file_{std::move(file)}, begin_{begin}, size_{size_bytes} {}

    std::string driver() const override { return "vmdk"; }
    std::string name() const override { return file_->name(); }
    std::uint64_t size() const override { return size_; }
    Limits limits() const override { return file_->limits(); }
    bool read_only() const override { return file_->read_only(); }

    Task<void> read(std::uint64_t offset, IoBuffer into) override {
        return file_->read(begin_ + offset, into);
    }
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override {
        return file_->write(begin_ + offset, from, durability);
    }
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override {
        return file_->write_zeroes(begin_ + offset, length, unmap, durability);
    }
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override {
        return file_->discard(begin_ + offset, length);
    }
    Task<void> flush() override { return file_->flush(); }
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override;
    /// The file gets as long as the extent; what it has beyond stays where the extent shrinks.
    Task<void> resize(std::uint64_t size_bytes) override;
    Task<void> close() override { return file_->close(); }
    Node* file() override { return file_.get(); }
    std::optional<std::uint64_t> allocated_bytes() const override {
        return file_->allocated_bytes();
    }
    Task<std::vector<Placement>> place(std::uint64_t offset, std::uint64_t length) override {
        return ready<std::vector<Placement>>(
            std::vector{Placement{begin_ + offset, std::min(length, size_ - offset)}});
    }
    Task<CheckResult> check(Repair repair) override;

private:
    std::unique_ptr<Node> file_;
    std::uint64_t begin_;
    std::uint64_t size_;
};

/// Zeroes that nobody can change.
class ZeroExtent final : public ImageNode {
public:
    explicit ZeroExtent(std::uint64_t size_bytes) : size_{size_bytes} {}

    std::string driver() const override { return "vmdk"; }
    std::string name() const override { return "an extent of zeroes"; }
    std::uint64_t size() const override { return size_; }
    bool read_only() const override { return true; }

    Task<void> read(std::uint64_t, IoBuffer into) override {
        into.fill(std::byte{0});
        return ready<void>({});
    }
    Task<void> write(std::uint64_t, IoBuffer, Durability) override {
        return ready<void>(
            base::fail(Errc::PermissionDenied, "an extent of type ZERO cannot be written"));
    }
    Task<void> write_zeroes(std::uint64_t, std::uint64_t, Unmap, Durability) override {
        return ready<void>({});
    }
    Task<void> discard(std::uint64_t, std::uint64_t) override { return ready<void>({}); }
    Task<void> flush() override { return ready<void>({}); }
    Task<Extent> status(std::uint64_t, std::uint64_t length) override {
        return ready<Extent>(Extent{length, Content::Zero, true, 0, std::nullopt, nullptr});
    }
    Task<void> resize(std::uint64_t size_bytes) override {
        size_ = size_bytes;
        return ready<void>({});
    }
    Task<CheckResult> check(Repair) override { return ready<CheckResult>(CheckResult{}); }

private:
    std::uint64_t size_;
};

/// A part of `whole`, which outlives it; ends where that ends.
class Slice final : public Node {
public:
    Slice(Node& whole, std::uint64_t begin) : whole_{whole}, begin_{begin} {}

    std::string driver() const override { return whole_.driver(); }
    std::string name() const override { return whole_.name(); }
    std::uint64_t size() const override { return whole_.size() - std::min(whole_.size(), begin_); }
    bool read_only() const override { return true; }
    Task<void> read(std::uint64_t offset, IoBuffer into) override {
        return whole_.read(begin_ + offset, into);
    }
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override {
        return whole_.write(begin_ + offset, from, durability);
    }
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override {
        return whole_.write_zeroes(begin_ + offset, length, unmap, durability);
    }
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override {
        return whole_.discard(begin_ + offset, length);
    }
    Task<void> flush() override { return whole_.flush(); }
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override {
        return whole_.status(begin_ + offset, length);
    }
    Task<void> resize(std::uint64_t) override {
        return ready<void>(base::fail(Errc::Internal, "a part of a backing file has its size"));
    }

private:
    Node& whole_;
    std::uint64_t begin_;
};

} // namespace doppel::block::vmdk
