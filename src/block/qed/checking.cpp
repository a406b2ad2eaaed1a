// SPDX-License-Identifier: Apache-2.0
/// Which clusters of the file are in use, and by whom twice.
#include <algorithm>
#include <vector>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/qed/qed_node.hpp"

namespace doppel::block::qed {

namespace {
constexpr std::uint64_t kMaxClusters = std::uint64_t{1} << 31; // that are remembered, a bit each
constexpr std::uint64_t kZeroEntry = 1;
} // namespace

/// Marks clusters as used; false, and a finding, where they cannot be.
bool QedNode::take(SpaceMap& used, std::uint64_t offset, std::uint64_t bytes,
                   const std::string& what, CheckResult& result) const {
    if (!check_place("", offset, bytes)) {
        result.found_corruption(fmt::format("{} would lie at {:#x}", what, offset));
        return false;
    }
    const bool free = used.take(offset / header_.cluster_bytes, bytes / header_.cluster_bytes);
    if (!free)
        result.found_corruption(fmt::format("{} lies where something else does", what));
    return free;
}

Task<std::vector<std::uint64_t>> QedNode::read_table(std::uint64_t offset) {
    std::vector<std::byte> bytes(header_.table_bytes);
    DOPPEL_AWAIT_VOID(file_->read(offset, IoBuffer{bytes}));
    std::vector<std::uint64_t> entries(header_.entries());
    for (std::size_t i = 0; i < entries.size(); ++i)
        entries[i] = base::load_le<std::uint64_t>(bytes.data() + i * 8);
    co_return entries;
}

Task<void> QedNode::check_table(std::uint64_t number, std::uint64_t offset, SpaceMap& used,
                                CheckResult& result) {
    DOPPEL_AWAIT(entries, read_table(offset));
    std::uint64_t last = 0;
    for (std::size_t i = 0; i < entries.size(); ++i) {
        if (entries[i] <= kZeroEntry)
            continue;
        ++result.allocated_clusters;
        result.fragmented_clusters += last != 0 && entries[i] != last + header_.cluster_bytes;
        last = entries[i];
        take(used, entries[i], header_.cluster_bytes,
             fmt::format("cluster {}", number * header_.entries() + i), result);
    }
    co_return {};
}

Task<CheckResult> QedNode::check(Repair) {
    CheckResult result;
    result.total_clusters = clusters();
    const auto in_file = align_up(file_->size()) / header_.cluster_bytes;
    if (in_file > kMaxClusters)
        co_return base::fail(Errc::Unsupported,
                             fmt::format("'{}' has {} clusters, at most {} are checked", name(),
                                         in_file, kMaxClusters));
    SpaceMap used{in_file};
    take(used, 0, header_.header_bytes, "the header", result);
    if (take(used, header_.l1_offset, header_.table_bytes, "the L1 table", result)) {
        DOPPEL_AWAIT(tables, read_table(header_.l1_offset));
        for (std::size_t i = 0; i < tables.size(); ++i)
            if (tables[i] != 0 &&
                take(used, tables[i], header_.table_bytes, fmt::format("L2 table {}", i), result))
                DOPPEL_AWAIT_VOID(check_table(i, tables[i], used, result));
    }
    for (std::uint64_t i = 0; i < in_file; ++i) {
        result.leaks += !used.contains(i);
        if (used.contains(i))
            result.image_end_offset = (i + 1) * header_.cluster_bytes;
    }
    co_return result;
}

} // namespace doppel::block::qed
