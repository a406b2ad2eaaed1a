// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A VHDX image. All metadata go through the log: an entry with the pages' new content is durable
/// before the pages are written in place, and while the header names the log every reader replays
/// it first. So a power cut leaves the tables as they were before or after a commit, whole.
///
/// Owner thread only.
#include <memory>
#include <string>
#include <vector>

#include "block/clustered/clustered_node.hpp"
#include "block/clustered/space_map.hpp"
#include "block/table_cache.hpp"
#include "block/vhdx/layout.hpp"
#include "block/vhdx/log.hpp"

namespace doppel::block::vhdx {

class VhdxNode final : public ClusteredNode {
public:
    static Task<std::unique_ptr<VhdxNode>> open(OpenRequest request);

    std::string driver() const override { return "vhdx"; }
    ImageInfo info() const override;
    Task<void> resize(std::uint64_t size_bytes) override;
    Task<CheckResult> check(Repair repair) override;
    Task<void> change_backing(std::string file, std::string format) override;
    Task<void> accept_backing() override { return change_backing(parent_, "vhdx"); }

private:
    struct Heads { // what the first MiB says
        Header header;
        unsigned slot = 0; // of the current header
        Regions regions;
    };

    VhdxNode(OpenRequest& request, const Heads& heads, Metadata metadata);

    // opening.cpp
    static Task<Heads> read_heads(Node& file);
    static Task<bool> replay(OpenRequest& request, Heads& heads);
    static Task<void> write_header(Node& file, Heads& heads);
    Task<void> check_parent();

    // vhdx_node.cpp
    Task<ClusterRun> find(std::uint64_t index, std::uint64_t most) override;
    Task<SectorRun> find_sectors(std::uint64_t index, std::uint64_t host, std::uint64_t first,
                                 std::uint64_t most) override;
    Task<std::uint64_t> entry(std::uint64_t number);
    Task<void> set_entry(std::uint64_t number, std::uint64_t value);
    Result<ClusterKind> kind_of(std::uint64_t value, std::uint64_t index) const;
    Task<std::uint64_t> bitmap_of(std::uint64_t index);
    std::uint64_t bit_of(std::uint64_t index, std::uint64_t sector) const;
    bool has_zero_state() const override { return true; }
    bool tracks_sectors() const override { return items_.has_parent; }
    bool holes_count() const override { return items_.leave_allocated; }

    // allocation.cpp
    Task<Space> allocate(std::uint64_t index, std::uint64_t count) override;
    void give_back(const Space& space) override;
    Task<void> link(std::uint64_t index, ClusterRun run) override;
    Task<void> mark_sectors(std::uint64_t index, std::uint64_t host, std::uint64_t first,
                            std::uint64_t count) override;
    Task<void> begin_bitmap(std::uint64_t index);
    Task<void> set_bits(std::uint64_t bitmap, std::uint64_t first, std::uint64_t count, bool set);
    Task<void> begin_writing() override;
    Task<void> release_all() override;
    std::uint64_t take_units(std::uint64_t count, bool& fresh);
    Task<SpaceMap> walk(CheckResult& result);

    // committing.cpp
    bool tables_dirty() const override { return table_.dirty(); }
    Task<void> write_ahead() override;
    Task<void> write_tables() override;
    Task<void> end_writing() override;
    Task<void> log_pages(std::span<const std::uint64_t> offsets);
    Task<void> store_metadata(Metadata metadata);

    // resizing.cpp
    Task<void> make_room(std::uint64_t entries);
    Task<void> shrink(std::uint64_t blocks);
    Task<void> grow(std::uint64_t size_bytes);
    Task<void> set_size(std::uint64_t size_bytes);
    Task<void> zero_tail(std::uint64_t begin, std::uint64_t end);
    Task<void> fill_partial();

    Heads heads_;
    Metadata items_;
    Geometry geometry_;
    TableCache table_; // of the block allocation table, sector bitmaps and metadata, by pages
    SpaceMap space_;   // in MiB; known once writing has begun
    std::uint64_t fresh_from_ = 0; // MiB that were never written
    std::uint64_t log_at_ = 0;
    std::uint64_t log_sequence_ = 0;
    std::uint64_t durable_bytes_ = 0; // of the file, at the last commit
    Uuid log_id_{};
    std::string parent_; // as this image names it
};

/// What a child of `image` notes about its parent, which the user has named.
Task<ParentLocator> locate_parent(IoContext& context, std::string image, std::string written);

/// The row of the format table.
const Format& format();

} // namespace doppel::block::vhdx
