// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The table of internal snapshots as bytes and as values. Any thread.
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.hpp"

namespace doppel::block::qcow2 {

struct Snapshot {
    std::uint64_t l1_offset = 0;
    std::uint32_t l1_entries = 0;
    std::string id;
    std::string name;
    std::uint32_t seconds = 0; // since 1970
    std::uint32_t nanoseconds = 0;
    std::uint64_t vm_clock_ns = 0;
    std::uint64_t vm_state_bytes = 0;
    std::uint64_t disk_bytes = 0;
    std::uint64_t icount = ~std::uint64_t{0}; // unknown
    std::vector<std::byte> unknown_extra;     // kept
};

constexpr std::uint64_t kMaxSnapshotTableBytes = 64u << 20;

/// Parses `count` entries, behind which `bytes` may go on.
base::Result<std::vector<Snapshot>> parse_snapshots(std::span<const std::byte> bytes,
                                                    std::uint32_t count,
                                                    std::uint64_t default_disk_bytes);
std::vector<std::byte> serialize_snapshots(const std::vector<Snapshot>& snapshots);

} // namespace doppel::block::qcow2
