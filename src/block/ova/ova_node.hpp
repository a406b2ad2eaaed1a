// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A disk of an OVF package, read only: of an archive (OVA) without unpacking it, or beside its
/// descriptor. The disk's own format is read through the archive; nothing in it may name files.
///
/// Owner thread only.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "block/format.hpp"
#include "block/ova/ovf.hpp"

namespace doppel::block::ova {

/// Opens an image of a format that is guessed, which may refer to nothing.
using OpenInside = Task<std::unique_ptr<ImageNode>> (*)(IoContext& context,
                                                        std::unique_ptr<Node> file,
                                                        ImageOptions like);

class OvaNode final : public ImageNode {
public:
    /// options.disk names the disk; it may be left out where there is one. With options.backing
    /// off it may be left out anyway: the package is only looked at.
    static Task<std::unique_ptr<OvaNode>> open(OpenRequest request, OpenInside inside);

    std::string driver() const override { return "ova"; }
    std::string name() const override { return package_->name(); }
    /// Of the disk; of all of them where none was chosen.
    std::uint64_t size() const override;
    Limits limits() const override { return disk_ ? disk_->limits() : Limits{}; }
    bool read_only() const override { return true; }

    Task<void> read(std::uint64_t offset, IoBuffer into) override;
    Task<void> write(std::uint64_t, IoBuffer, Durability) override { return refuse(); }
    Task<void> write_zeroes(std::uint64_t, std::uint64_t, Unmap, Durability) override {
        return refuse();
    }
    Task<void> discard(std::uint64_t, std::uint64_t) override { return refuse(); }
    Task<void> flush() override { return ready<void>({}); }
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override;
    Task<void> resize(std::uint64_t) override { return refuse(); }
    Node* file() override { return package_.get(); }
    bool names_files() override { return !archive_; }
    std::optional<std::uint64_t> allocated_bytes() const override {
        return package_->allocated_bytes();
    }
    ImageInfo info() const override;
    /// The manifest's digests, then every disk.
    Task<CheckResult> check(Repair repair) override;

private:
    struct Item {
        std::string name;
        std::unique_ptr<Node> file;
    };
    OvaNode(OpenRequest& request, OpenInside inside);
    Task<void> find_items();
    Task<void> open_items(ImageOpener& opener);
    Task<void> read_descriptor();
    Task<void> choose();
    Task<std::unique_ptr<ImageNode>> open_disk(std::string file);
    Task<void> check_manifest(CheckResult& result);
    Task<void> check_digest(std::string file, std::string algorithm, std::string digest,
                            CheckResult& result);
    Node* item(std::string_view name) const;
    std::string disk_names() const;
    Task<void> refuse() const;
    std::unexpected<Error> wrong(Errc code, std::string text, std::string hint = {}) const;

    IoContext& context_;
    ImageOptions options_;
    OpenInside inside_;
    std::unique_ptr<Node> package_; // the archive, or the descriptor
    bool archive_ = false;
    std::vector<Item> items_;
    std::string descriptor_; // its name
    std::string manifest_;   // its text
    bool has_manifest_ = false;
    std::vector<Disk> disks_; // those that have content
    std::unique_ptr<ImageNode> disk_;
};

/// Whether it is an archive whose first file is an OVF descriptor, or such a descriptor.
bool is_package(std::span<const std::byte> head);

} // namespace doppel::block::ova
