// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A VMDK image: a descriptor and the extents it names, side by side. The descriptor stands in the
/// only extent (monolithicSparse, streamOptimized) or in a file of its own, its extents beside it.
///
/// An image is known by its CID, a number that changes when somebody writes to the image after it
/// was opened; a child notes its parent's.
///
/// Owner thread only.
#include <memory>
#include <string>
#include <vector>

#include "block/async_lock.hpp"
#include "block/format.hpp"
#include "block/vmdk/descriptor.hpp"
#include "block/vmdk/sparse_extent.hpp"

namespace doppel::block::vmdk {

class VmdkNode final : public ImageNode {
public:
    static Task<std::unique_ptr<VmdkNode>> open(OpenRequest request);

    std::string driver() const override { return "vmdk"; }
    std::string name() const override { return name_; }
    std::uint64_t size() const override { return size_bytes_; }
    Limits limits() const override;
    bool read_only() const override { return options_.access == Access::ReadOnly; }

    Task<void> read(std::uint64_t offset, IoBuffer into) override;
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override;
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override;
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override;
    Task<void> flush() override;
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override;
    Task<void> resize(std::uint64_t size_bytes) override;
    Task<void> close() override;
    /// Null: several files.
    Node* file() override;
    Node* backing() override { return backing_.get(); }
    bool names_files() override { return file_ != nullptr || backing_ != nullptr; }
    std::optional<std::uint64_t> allocated_bytes() const override;

    ImageInfo info() const override;
    Task<CheckResult> check(Repair repair) override;
    Task<void> change_backing(std::string file, std::string format) override;
    Task<void> accept_backing() override;
    Task<void> make_empty() override;
    Task<std::vector<Placement>> place(std::uint64_t offset, std::uint64_t length) override;

    CompressionKind compression() const override;
    bool is_stream() const override { return compression() != CompressionKind::None; }
    Task<void> write_compressed(std::uint64_t offset, std::vector<std::byte> bytes) override;

    std::uint32_t cid() const { return descriptor_.cid; }

private:
    struct Part {
        std::uint64_t begin = 0;
        std::unique_ptr<ImageNode> node;
        SparseExtent* sparse = nullptr; // the same, if it is one
        std::string type;               // as the descriptor says; empty: the descriptor is in it
        std::uint64_t end() const { return begin + node->size(); }
    };

    explicit VmdkNode(const OpenRequest& request);

    // opening.cpp
    Task<void> open_embedded(OpenRequest& request);
    Task<void> open_parts(OpenRequest& request);
    Task<Part> open_part(OpenRequest& request, ExtentLine line);
    Task<void> open_parent(ImageOpener& opener);

    // vmdk_node.cpp
    Part& part_at(std::uint64_t offset);
    Task<void> before_writing();
    Task<void> write_descriptor(std::string text);

    // changing.cpp
    Task<void> set_parent(std::string written, std::uint32_t cid);
    Result<void> check_new_size(std::uint64_t size_bytes) const;
    bool size_differs() const;
    std::string resized_descriptor(std::uint64_t size_bytes) const;

    IoContext& context_;
    ImageOptions options_;
    std::string name_;
    std::uint64_t size_bytes_ = 0;
    Descriptor descriptor_;
    std::unique_ptr<Node> file_;         // of the descriptor, if it has one of its own
    Node* descriptor_file_ = nullptr;    // where it stands
    std::uint64_t descriptor_at_ = 0;    // bytes
    std::uint64_t descriptor_bytes_ = 0; // room for it
    std::unique_ptr<Node> backing_;
    std::vector<Part> parts_; // in order; destroyed before what stands behind them
    std::string parent_;      // as it is opened
    bool writing_ = false;    // the CID is a new one
    AsyncMutex beginning_;
};

/// The descriptor of an image's file, be it in an extent or alone.
Task<Descriptor> read_descriptor(Node& file);
std::uint32_t random_cid();
/// The lines of the virtual disk's geometry: `adapter` "ide" has 16 heads, others 255.
struct DiskGeometry {
    std::uint64_t cylinders = 0;
    unsigned heads = 16, sectors = 63;
};
DiskGeometry geometry_of(std::uint64_t size_bytes, std::string_view adapter);

/// The row of the format table.
const Format& format();

} // namespace doppel::block::vmdk
