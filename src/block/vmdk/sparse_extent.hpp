// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One sparse extent: grains that a directory of tables finds. Where there is a redundant directory
/// both say the same; the one that is not redundant counts. New grains go to the end of the file or
/// where nobody is; the tables name them once they are durable.
///
/// A stream-optimized one is read like the others, and written once: while it has no grain yet, by
/// write_compressed() alone; its tables and footer come with close().
///
/// Owner thread only.
#include <memory>
#include <string>
#include <vector>

#include "block/clustered/clustered_node.hpp"
#include "block/table_cache.hpp"
#include "block/vmdk/layout.hpp"
#include "block/vmdk/stream_writer.hpp"

namespace doppel::block::vmdk {

class SparseExtent final : public ClusteredNode {
public:
    /// Error: the header, at the beginning or in the footer, is not sound.
    static Task<std::unique_ptr<SparseExtent>> open(OpenRequest request);

    std::string driver() const override { return "vmdk"; }
    Task<void> resize(std::uint64_t size_bytes) override;
    Task<CheckResult> check(Repair repair) override;
    CompressionKind compression() const override;
    bool is_stream() const override { return compression() != CompressionKind::None; }
    Task<void> write_compressed(std::uint64_t offset, std::vector<std::byte> bytes) override;

    const Header& header() const { return header_; }
    /// Error: it cannot have that size.
    Result<void> check_new_size(std::uint64_t size_bytes) const;
    void set_backing(std::unique_ptr<Node> backing) { backing_ = std::move(backing); }

private:
    struct Range { // of the file
        std::uint64_t begin = 0, end = 0;
    };
    /// What of the file is in use.
    struct Survey {
        std::vector<std::uint32_t> grains; // sectors at which they begin, sorted
        std::vector<Range> metadata;       // sorted
        std::uint64_t stale = 0;           // entries of redundant tables that say something else
        std::uint64_t end = 0;             // of all of it
    };

    SparseExtent(OpenRequest& request, const Header& header);

    // sparse_extent.cpp
    Task<ClusterRun> find(std::uint64_t index, std::uint64_t most) override;
    Task<void> unpack(std::uint64_t index, std::uint64_t host, std::span<std::byte> out) override;
    bool has_zero_state() const override { return (header_.flags & kFlagZeroGrain) != 0; }
    Task<std::uint64_t> table_at(std::uint64_t directory, std::uint64_t number);

    // allocation.cpp
    Task<Space> allocate(std::uint64_t index, std::uint64_t count) override;
    void give_back(const Space& space) override;
    Task<void> link(std::uint64_t index, ClusterRun run) override;
    bool tables_dirty() const override { return tables_.dirty() || header_dirty_; }
    Task<void> write_ahead() override;
    Task<void> write_tables() override { return tables_.write_dirty(); }
    Task<void> begin_writing() override;
    Task<void> end_writing() override;
    Task<void> release_all() override;
    Task<void> set_word(std::uint64_t at, std::uint32_t value);
    Task<void> set_entry(std::uint64_t directory, std::uint64_t index, std::uint32_t value);
    Task<std::uint64_t> new_table(std::uint64_t directory, std::uint64_t number);
    void use(const Survey& survey);

    // checking.cpp
    /// How the file gets as small as it can: grains from `first` on go to gaps, then it has `end`.
    struct Shrinking {
        std::uint32_t first = 0; // sector
        std::uint64_t end = 0;
    };
    Task<Survey> survey(CheckResult& result);
    Task<std::vector<std::uint32_t>> read_directory(std::uint64_t at);
    Task<std::vector<std::uint32_t>> read_table(std::uint64_t table);
    Task<void> survey_table(std::uint64_t number, std::uint64_t table, std::uint64_t redundant,
                            Survey& found, CheckResult& result);
    void survey_grain(std::uint64_t index, std::uint32_t value, Survey& found,
                      CheckResult& result) const;
    void find_overlaps(const Survey& found, CheckResult& result) const;
    Task<void> check_stream(std::uint64_t index, std::uint64_t host, CheckResult& result);
    std::vector<std::uint64_t> free_grains(const Survey& found) const;
    Shrinking shrinking(const Survey& found) const;
    Task<void> compact();
    Task<void> move_grain(std::uint64_t index, std::uint64_t from, std::uint64_t to);
    Task<void> copy_redundant();

    // resizing.cpp
    Task<void> zero_tail(std::uint64_t begin, std::uint64_t end);
    Task<void> clear_entries(std::uint64_t first, std::uint64_t end);
    Task<void> replace_directories(Header header);
    Task<void> grow(std::uint64_t size_bytes);
    Task<void> set_size(std::uint64_t size_bytes);
    Task<void> write_directory(std::uint64_t old_at, std::uint64_t at, std::uint64_t tables_at,
                               const Header& header);

    Task<void> begin_stream(const Survey& found);

    Header header_;
    std::unique_ptr<StreamWriter> stream_; // what a stream is written by
    TableCache tables_;                    // in sectors
    bool header_dirty_ = false;
    bool marked_ = false;             // uncleanShutdown is set because we write
    std::vector<std::uint64_t> gaps_; // places of whole grains that nobody uses; the last one first
    std::uint64_t end_ = 0;           // where the next grain or table can go
    std::uint64_t fresh_from_ = 0;    // bytes that were never written
};

} // namespace doppel::block::vmdk
