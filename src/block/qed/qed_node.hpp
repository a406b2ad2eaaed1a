// SPDX-License-Identifier: Apache-2.0
#pragma once
/// QED images, read only (QEMU docs/interop/qed_spec.txt, version 7.2): two levels of tables, all
/// numbers little-endian. Owner thread only.
#include <memory>
#include <string>
#include <vector>

#include "block/clustered/clustered_node.hpp"
#include "block/clustered/space_map.hpp"
#include "block/table_cache.hpp"

namespace doppel::block::qed {

constexpr std::uint32_t QED_MAGIC = 0x00444551; // "QED\0"

struct Header {
    std::uint64_t cluster_bytes = 0;
    std::uint64_t header_bytes = 0; // whole clusters
    std::uint64_t table_bytes = 0;
    std::uint64_t l1_offset = 0;
    std::uint64_t size_bytes = 0;
    bool needs_check = false; // was not closed
    bool backing_is_raw = false;
    std::uint32_t backing_at = 0; // name of the backing file, within the header's clusters
    std::uint32_t backing_bytes = 0;

    std::uint64_t entries() const { return table_bytes / 8; } // of a table
};
/// `head`: the first 64 bytes. Every number is held against its limit, tables against the file.
Result<Header> parse_header(std::span<const std::byte> head, std::uint64_t file_bytes);

class QedNode final : public ClusteredNode {
public:
    static Task<std::unique_ptr<QedNode>> open(OpenRequest request);

    std::string driver() const override { return "qed"; }
    ImageInfo info() const override;
    Task<void> resize(std::uint64_t) override { return ready<void>(cannot("resizing")); }
    Task<CheckResult> check(Repair repair) override;

private:
    QedNode(OpenRequest& request, const Header& header);
    Task<ClusterRun> find(std::uint64_t index, std::uint64_t most) override;
    Task<std::uint64_t> entry(std::uint64_t table, std::uint64_t index);
    Result<void> check_place(const char* what, std::uint64_t offset, std::uint64_t bytes) const;

    // checking.cpp
    bool take(SpaceMap& used, std::uint64_t offset, std::uint64_t bytes, const std::string& what,
              CheckResult& result) const;
    Task<std::vector<std::uint64_t>> read_table(std::uint64_t offset);
    Task<void> check_table(std::uint64_t number, std::uint64_t offset, SpaceMap& used,
                           CheckResult& result);

    Header header_;
    TableCache tables_;
    std::string backing_name_;
};

/// The row of the format table.
const Format& format();

} // namespace doppel::block::qed
