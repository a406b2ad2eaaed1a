// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Expanding images of Parallels, read only (QEMU docs/interop/parallels.txt, version 7.2): one
/// table that says where each track lies; all numbers are little-endian. Owner thread only.
#include <memory>

#include "block/clustered/clustered_node.hpp"
#include "block/table_cache.hpp"

namespace doppel::block::parallels {

struct Header {
    std::uint64_t size_bytes = 0;
    std::uint64_t track_bytes = 0; // any number of sectors
    std::uint32_t entries = 0;
    std::uint64_t unit_bytes = 0; // in which the entries count: sectors, or tracks
    bool in_use = false;

    /// The largest power of two that divides a track: what the table is seen in.
    std::uint64_t cluster_bytes() const { return track_bytes & -track_bytes; }
};
/// `head`: the first 64 bytes. Every number is held against its limit, the table against the file.
Result<Header> parse_header(std::span<const std::byte> head, std::uint64_t file_bytes);

class ParallelsNode final : public ClusteredNode {
public:
    static Task<std::unique_ptr<ParallelsNode>> open(OpenRequest request);

    std::string driver() const override { return "parallels"; }
    ImageInfo info() const override;
    Task<void> resize(std::uint64_t) override { return ready<void>(cannot("resizing")); }
    Task<CheckResult> check(Repair repair) override;

private:
    ParallelsNode(OpenRequest& request, const Header& header);
    Task<ClusterRun> find(std::uint64_t index, std::uint64_t most) override;

    Header header_;
    TableCache table_; // in sectors
};

/// The row of the format table.
const Format& format();

} // namespace doppel::block::parallels
