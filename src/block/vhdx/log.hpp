// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The log of a VHDX image (MS-VHDX v4.0, §2.3): a ring of entries, each a few pages of 4 KiB that
/// belong elsewhere in the file. Pure functions over the ring's bytes. Any thread.
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "block/vhdx/layout.hpp"

namespace doppel::block::vhdx {

constexpr std::uint64_t kLogPage = 4096;
constexpr std::uint64_t kMaxLogBytes = 64 * kMib; // of a log that we read

/// What the log says belongs at `offset`: a page, or zeroes.
struct LogWrite {
    std::uint64_t offset = 0;
    std::uint64_t zero_bytes = 0;
    std::vector<std::byte> page; // empty: zeroes
};

struct Replay {
    std::vector<LogWrite> writes; // in order
    std::uint64_t file_bytes = 0; // how long the file must be afterwards
};

/// What the active sequence of the ring wants written; nothing if there is none: then its last
/// entry never became complete and the one before is in place. `ring`: the whole log. Error: the
/// entries contradict themselves, or the file is shorter than when they were written.
Result<Replay> read_log(std::span<const std::byte> ring, const Uuid& id, std::uint64_t file_bytes);

/// An entry that stands for itself, for `pages` of kLogPage bytes by their offsets.
std::vector<std::byte> log_entry(const Uuid& id, std::uint64_t sequence, std::uint64_t at,
                                 std::uint64_t file_bytes,
                                 const std::map<std::uint64_t, const std::byte*>& pages);
/// How large log_entry() of so many pages is.
std::uint64_t log_entry_bytes(std::uint64_t pages);

} // namespace doppel::block::vhdx
