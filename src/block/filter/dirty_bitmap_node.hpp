// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Remembers in memory what was written, for any format: a backup then copies that. Beside the
/// bitmaps that the image keeps itself. Owner thread only.
#include "block/filter/filter_node.hpp"

namespace doppel::block::filter {

class DirtyBitmapNode final : public FilterNode, public BitmapStore {
public:
    /// The first bitmap. Errors: what add() says.
    static Result<std::unique_ptr<ImageNode>> create(std::unique_ptr<ImageNode> below,
                                                     const std::string& bitmap,
                                                     std::uint64_t granularity_bytes);

    std::string driver() const override { return "dirty-bitmap"; }
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override;
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override;
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override;
    Task<void> resize(std::uint64_t size_bytes) override;
    Task<void> apply_snapshot(std::string name) override;
    Task<void> make_empty() override;
    BitmapStore* bitmaps() override { return this; }

    // Those of the image come behind ours.
    std::vector<BitmapInfo> list() const override;
    /// Errors: the name exists; the granularity is no power of two from 512 to 2 GiB, or so small
    /// that the bits would fill more than 128 MiB.
    Result<void> add(const std::string& name, std::uint64_t granularity_bytes) override;
    Result<void> remove(const std::string& name) override;
    Result<void> clear(const std::string& name) override;
    Result<void> set_recording(const std::string& name, bool recording) override;
    Result<void> merge(const std::string& target, const BitmapStore& from,
                       const std::string& source) override;
    Result<std::vector<MarkedRange>> marked(const std::string& name) const override;

private:
    struct Bitmap {
        std::string name;
        unsigned granularity_bits = 16;
        bool recording = true;
        std::vector<bool> bits;
        void mark(std::uint64_t offset, std::uint64_t length);
    };
    explicit DirtyBitmapNode(std::unique_ptr<ImageNode> below)
        : FilterNode{std::move(below)}, behind_{FilterNode::bitmaps()} {}
    void mark(std::uint64_t offset, std::uint64_t length);
    Bitmap* find(const std::string& name);
    const Bitmap* find(const std::string& name) const;
    /// The image's own store, for names that are not ours.
    Result<BitmapStore*> behind(const std::string& name) const;
    std::uint64_t granules(unsigned granularity_bits) const;

    BitmapStore* behind_; // null: the format has none
    std::vector<Bitmap> bitmaps_;
};

} // namespace doppel::block::filter
