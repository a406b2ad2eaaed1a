// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A VHD whose blocks lie where a table says: dynamic or differencing. A new block takes the
/// footer's place, and the footer goes behind it before the table names the block; until then its
/// copy at the file's beginning is good. Header and footer change by a new header elsewhere that
/// the footer then names.
///
/// Owner thread only.
#include <memory>
#include <string>
#include <vector>

#include "block/clustered/clustered_node.hpp"
#include "block/table_cache.hpp"
#include "block/vpc/layout.hpp"

namespace doppel::block::vpc {

class VpcNode final : public ClusteredNode {
public:
    static Task<std::unique_ptr<VpcNode>> open(OpenRequest request, Footer footer,
                                               bool footer_lost);

    std::string driver() const override { return "vpc"; }
    ImageInfo info() const override;
    Task<void> resize(std::uint64_t size_bytes) override;
    Task<CheckResult> check(Repair repair) override;
    Task<void> change_backing(std::string file, std::string format) override;

private:
    VpcNode(OpenRequest& request, Footer footer, Header header);

    // vpc_node.cpp
    Task<void> renew_copy();
    Task<void> open_parent(ImageOpener& opener);
    Task<ClusterRun> find(std::uint64_t index, std::uint64_t most) override;
    Task<SectorRun> find_sectors(std::uint64_t index, std::uint64_t host, std::uint64_t first,
                                 std::uint64_t most) override;
    Task<Space> allocate(std::uint64_t index, std::uint64_t count) override;
    Task<void> link(std::uint64_t index, ClusterRun run) override;
    Task<void> mark_sectors(std::uint64_t index, std::uint64_t host, std::uint64_t first,
                            std::uint64_t count) override;
    bool tables_dirty() const override { return table_.dirty() || footer_dirty_; }
    Task<void> write_ahead() override;
    Task<void> write_tables() override { return table_.write_dirty(); }
    Task<void> begin_writing() override;
    Task<void> release_all() override;
    bool tracks_sectors() const override { return footer_.type == Type::Differencing; }
    Task<void> set_entry(std::uint64_t index, std::uint32_t value);

    // changing.cpp
    Task<std::uint64_t> walk(CheckResult& result);
    Task<void> replace_footer(Footer footer);
    Task<void> replace_header(Header header, Type type, std::uint64_t size_bytes);
    Task<void> write_table(Header& header, std::uint64_t blocks);
    Task<void> replace_table(std::uint64_t blocks, std::uint64_t size_bytes);
    Task<void> grow(std::uint64_t size_bytes);
    Task<void> zero_tail(std::uint64_t begin, std::uint64_t end);
    Task<void> fill_partial();

    Footer footer_;
    Header header_;
    TableCache table_; // the block table and the blocks' bitmaps, by sectors
    bool footer_dirty_ = false;
    bool footer_lost_ = false;     // the one at the end; its copy is in use
    std::uint64_t end_ = 0;        // of all that is in use: the footer's place
    std::uint64_t fresh_from_ = 0; // bytes that were never written
    std::string parent_;           // as this image names it
};

/// What a child of `image` notes about its parent: its UUID. Error: it is no VHD.
Task<Uuid> parent_uuid(IoContext& context, std::string image, std::string written);

/// The footer, at the end or as the copy at the beginning; whether the one at the end is lost.
struct FoundFooter {
    Footer footer;
    bool lost = false;
};
Task<FoundFooter> find_footer(Node& file);

/// The row of the format table.
const Format& format();

} // namespace doppel::block::vpc
