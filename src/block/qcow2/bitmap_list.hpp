// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The persistent dirty bitmaps of an image: in memory while it is open for writing, marked in use
/// on disk meanwhile, stored at close. Owner thread only.
#include <optional>
#include <string>
#include <vector>

#include "block/image_node.hpp"

namespace doppel::block::qcow2 {

class Qcow2Node;

struct Bitmap {
    std::string name;
    unsigned granularity_bits = 16;
    bool recording = true;
    bool inconsistent = false;
    std::vector<std::uint64_t> words; // a bit per granule, the lowest first
    std::vector<std::byte> extra;     // kept
    // Where it lies in the image, for check and for freeing: nothing when new.
    std::uint64_t table_offset = 0;
    std::uint32_t table_entries = 0;
};

class BitmapList final : public BitmapStore {
public:
    explicit BitmapList(Qcow2Node& node) : node_{&node} {}

    /// Reads what the image has; an image that another program wrote without knowing bitmaps makes
    /// them inconsistent.
    Task<void> load(Qcow2Node& node);
    /// Says on disk that the bitmaps are in memory now. Before the first write.
    Task<void> mark_in_use(Qcow2Node& node);
    /// Writes them back. The metadata lock is held.
    Task<void> store(Qcow2Node& node);
    void mark(std::uint64_t offset, std::uint64_t length);
    /// After the disk changed its size: new granules are clear.
    void resized(std::uint64_t size_bytes);
    const std::vector<Bitmap>& bitmaps() const noexcept { return bitmaps_; }
    /// Parts of the file that the image's directory of bitmaps names, and the directory.
    struct Stored {
        std::uint64_t offset = 0;
        std::uint64_t bytes = 0;
    };
    const std::vector<Stored>& stored() const noexcept { return stored_; }

    std::vector<BitmapInfo> list() const override;
    Result<void> add(const std::string& name, std::uint64_t granularity_bytes) override;
    Result<void> remove(const std::string& name) override;
    Result<void> clear(const std::string& name) override;
    Result<void> set_recording(const std::string& name, bool recording) override;
    Result<void> merge(const std::string& target, const BitmapStore& from,
                       const std::string& source) override;
    Result<std::vector<MarkedRange>> marked(const std::string& name) const override;

private:
    Result<Bitmap*> find(const std::string& name);
    Task<void> load_one(Qcow2Node& node, Bitmap& bitmap);
    Task<void> store_one(Qcow2Node& node, Bitmap& bitmap);
    Task<void> set_extension(Qcow2Node& node, std::uint64_t directory,
                             std::uint64_t directory_bytes);
    std::vector<std::byte> directory(bool in_use) const;
    std::size_t words_for(unsigned granularity_bits) const;

    Qcow2Node* node_;
    std::vector<Bitmap> bitmaps_;
    bool changed_ = false;
    bool in_use_ = false;
    std::vector<Stored> stored_; // freed when new ones are in place
};

} // namespace doppel::block::qcow2
