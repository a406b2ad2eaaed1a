// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Writes a stream-optimized extent from its first grain to its footer: grains in ascending order,
/// each table behind its last grain, the directory at the end, a marker in front of each (VMware's
/// Virtual Disk Format 5.0, "Stream-Optimized Compressed Sparse Extents"). Until finish() the file
/// has no footer, and is plainly incomplete. Owner thread only.
#include <span>
#include <vector>

#include "block/node.hpp"
#include "block/vmdk/layout.hpp"

namespace doppel::block::vmdk {

class StreamWriter {
public:
    /// `file` outlives it. What the header names lies in it already.
    StreamWriter(Node& file, const Header& header);
    /// `stream`: grain number `index` as zlib; larger than all before.
    Task<void> append(std::uint64_t index, std::span<const std::byte> stream);
    Task<void> finish();

private:
    enum class Marker : std::uint32_t { EndOfStream = 0, Table = 1, Directory = 2, Footer = 3 };
    Task<void> end_table();
    Task<void> put(std::span<const std::byte> bytes); // padded to sectors
    Task<void> put_marker(Marker type, std::uint64_t sectors);
    Task<void> put_words(const std::vector<std::uint32_t>& words);
    Task<void> write_pending();
    std::uint32_t position() const; // in sectors, of what is put next

    Node& file_;
    Header header_;
    std::vector<std::uint32_t> directory_;
    std::vector<std::uint32_t> table_; // of the grains that come now
    std::uint64_t number_ = 0;         // of that table
    std::uint64_t next_ = 0;           // no grain before it may come
    std::uint64_t at_;                 // where `pending_` begins in the file
    std::vector<std::byte> pending_;
};

} // namespace doppel::block::vmdk
