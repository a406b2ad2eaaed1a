// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A VDI image. The file's blocks have numbers without gaps, and the header says how many there
/// are: other programs put the next block there. So that number is durable before a table entry
/// that counts on it is, and gaps that a power cut leaves are filled first.
///
/// A differencing image names its parent by UUIDs only: it is looked for among the .vdi files of
/// the image's folder.
///
/// Owner thread only.
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "block/clustered/clustered_node.hpp"
#include "block/table_cache.hpp"
#include "block/vdi/layout.hpp"

namespace doppel::block::vdi {

class VdiNode final : public ClusteredNode {
public:
    static Task<std::unique_ptr<VdiNode>> open(OpenRequest request);

    std::string driver() const override { return "vdi"; }
    ImageInfo info() const override;
    Task<void> resize(std::uint64_t size_bytes) override;
    Task<CheckResult> check(Repair repair) override;
    Task<void> change_backing(std::string file, std::string format) override;
    Task<void> accept_backing() override;

private:
    /// Who uses each block of the file: an index into the table, or kFree.
    using Owners = std::vector<std::uint32_t>;

    VdiNode(OpenRequest& request, const Header& header);

    // vdi_node.cpp
    Task<ClusterRun> find(std::uint64_t index, std::uint64_t most) override;
    Task<std::uint32_t> entry(std::uint64_t index);
    Task<void> set_entry(std::uint64_t index, std::uint32_t value);
    bool has_zero_state() const override { return true; }
    bool holes_count() const override { return header_.type == Type::Fixed; }

    // allocation.cpp
    Task<Space> allocate(std::uint64_t index, std::uint64_t count) override;
    void give_back(const Space& space) override;
    Task<void> link(std::uint64_t index, ClusterRun run) override;
    bool tables_dirty() const override { return table_.dirty() || header_dirty_; }
    Task<void> write_ahead() override;
    Task<void> write_tables() override { return table_.write_dirty(); }
    Task<void> begin_writing() override;
    Task<void> release_all() override;
    Task<void> write_header();
    std::uint64_t file_blocks() const;
    Task<void> use(Owners owners);
    Task<void> find_free();

    // checking.cpp
    Task<Owners> find_owners(CheckResult& result);
    Task<void> compact(Owners owners);
    Task<void> move_blocks(Owners& owners);
    Task<void> copy_block(std::uint64_t from, std::uint64_t to);

    // resizing.cpp
    Task<void> shrink(std::uint64_t old_blocks);
    Task<void> grow(std::uint64_t size_bytes);
    Task<void> make_room(std::uint64_t blocks);
    Task<void> move_table(std::uint64_t count, std::uint64_t blocks);
    Task<void> set_size(std::uint64_t size_bytes);
    Task<void> zero_tail(std::uint64_t begin, std::uint64_t end);

    // parent.cpp
    Task<void> find_parent();

    Header header_;
    TableCache table_; // in sectors: the data may begin right behind it
    bool header_dirty_ = false;
    std::uint64_t next_ = 0;       // blocks of the file that are in use, gaps included
    std::set<std::uint64_t> gaps_; // below next_
    std::uint64_t fresh_from_ = 0; // blocks that were never written
    std::string parent_;           // file name; empty: none, or not found
};

/// The row of the format table.
const Format& format();

} // namespace doppel::block::vdi
