// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Something that stands in front of an image and lets everything pass: the base of filters, which
/// change what concerns them. Owner thread only.
#include <memory>

#include "block/image_node.hpp"

namespace doppel::block::filter {

class FilterNode : public ImageNode {
public:
    explicit FilterNode(std::unique_ptr<ImageNode> below) : below_{std::move(below)} {}

    std::string name() const override { return below_->name(); }
    std::uint64_t size() const override { return below_->size(); }
    Limits limits() const override { return below_->limits(); }
    bool read_only() const override { return below_->read_only(); }
    bool fixed_size() const override { return below_->fixed_size(); }
    bool starts_as_zeroes() const override { return below_->starts_as_zeroes(); }
    bool names_files() override { return below_->names_files(); }
    bool is_stream() const override { return below_->is_stream(); }
    /// Bulk copies come through the filter like everybody.
    bool plain_data() const override { return false; }

    Task<void> read(std::uint64_t offset, IoBuffer into) override {
        return below_->read(offset, into);
    }
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override {
        return below_->write(offset, from, durability);
    }
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override {
        return below_->write_zeroes(offset, length, unmap, durability);
    }
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override {
        return below_->discard(offset, length);
    }
    Task<void> flush() override { return below_->flush(); }
    /// Does not say where data lies: it is read through the filter.
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override;
    Task<void> resize(std::uint64_t size_bytes) override { return below_->resize(size_bytes); }
    Task<void> close() override { return below_->close(); }
    Node* file() override { return below_->file(); }
    Node* backing() override { return below_->backing(); }
    std::optional<std::uint64_t> allocated_bytes() const override {
        return below_->allocated_bytes();
    }

    ImageInfo info() const override { return below_->info(); }
    Task<std::vector<SnapshotInfo>> list_snapshots() override { return below_->list_snapshots(); }
    Task<void> create_snapshot(std::string name, std::int64_t time_ns) override {
        return below_->create_snapshot(std::move(name), time_ns);
    }
    Task<void> apply_snapshot(std::string name) override {
        return below_->apply_snapshot(std::move(name));
    }
    Task<void> delete_snapshot(std::string name) override {
        return below_->delete_snapshot(std::move(name));
    }
    Task<void> view_snapshot(std::string name) override {
        return below_->view_snapshot(std::move(name));
    }
    Task<void> change_backing(std::string file, std::string format) override {
        return below_->change_backing(std::move(file), std::move(format));
    }
    Task<void> accept_backing() override { return below_->accept_backing(); }
    Task<void> make_empty() override { return below_->make_empty(); }
    Task<CheckResult> check(Repair repair) override { return below_->check(repair); }
    Task<void> amend(OptionValues options) override { return below_->amend(std::move(options)); }
    BitmapStore* bitmaps() override { return below_->bitmaps(); }

protected:
    ImageNode& below() noexcept { return *below_; }

private:
    std::unique_ptr<ImageNode> below_;
};

} // namespace doppel::block::filter
