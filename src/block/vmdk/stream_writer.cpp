// SPDX-License-Identifier: Apache-2.0
#include "block/vmdk/stream_writer.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::block::vmdk {

namespace {
constexpr std::size_t kWriteBytes = 1u << 20;
}

StreamWriter::StreamWriter(Node& file, const Header& header)
    : file_{file}, header_{header}, directory_(header.directory_bytes() / 4),
      table_(header.table_bytes() / 4), at_{header.overhead_bytes} {
    header_.directory_at = GD_AT_END;
}

std::uint32_t StreamWriter::position() const {
    return static_cast<std::uint32_t>((at_ + pending_.size()) / kSector);
}

Task<void> StreamWriter::write_pending() {
    const IoBuffer from{pending_.data(), pending_.size()};
    DOPPEL_AWAIT_VOID(file_.write(at_, from, Durability::Cached));
    at_ += pending_.size();
    pending_.clear();
    co_return {};
}

Task<void> StreamWriter::put(std::span<const std::byte> bytes) {
    if ((at_ + pending_.size() + bytes.size()) / kSector > kMaxSectorNumber)
        co_return base::fail(Errc::NoSpace, "a VMDK stream cannot be larger than 2 TiB");
    pending_.insert(pending_.end(), bytes.begin(), bytes.end());
    pending_.resize(base::align_up(pending_.size(), kSector));
    if (pending_.size() >= kWriteBytes)
        DOPPEL_AWAIT_VOID(write_pending());
    co_return {};
}

Task<void> StreamWriter::put_marker(Marker type, std::uint64_t sectors) {
    std::array<std::byte, kSector> marker{};
    base::store_le(marker.data(), sectors);
    base::store_le(marker.data() + 12, static_cast<std::uint32_t>(type));
    DOPPEL_AWAIT_VOID(put(marker));
    co_return {};
}

Task<void> StreamWriter::put_words(const std::vector<std::uint32_t>& words) {
    std::vector<std::byte> bytes(words.size() * 4);
    for (std::size_t i = 0; i < words.size(); ++i)
        base::store_le(bytes.data() + i * 4, words[i]);
    DOPPEL_AWAIT_VOID(put(bytes));
    co_return {};
}

/// A table without grains is left out; the directory then says 0.
Task<void> StreamWriter::end_table() {
    if (std::ranges::all_of(table_, [](std::uint32_t entry) { return entry == 0; }))
        co_return {};
    DOPPEL_AWAIT_VOID(put_marker(Marker::Table, header_.table_bytes() / kSector));
    directory_[number_] = position();
    DOPPEL_AWAIT_VOID(put_words(table_));
    std::ranges::fill(table_, 0);
    co_return {};
}

Task<void> StreamWriter::append(std::uint64_t index, std::span<const std::byte> stream) {
    if (index < next_ || index >= header_.grains())
        co_return base::fail(
            Errc::InvalidArgument,
            fmt::format("grain {} comes after grain {}, a stream ascends", index, next_ - 1));
    next_ = index + 1;
    if (index / header_.entries != number_) {
        DOPPEL_AWAIT_VOID(end_table());
        number_ = index / header_.entries;
    }
    table_[index % header_.entries] = position();
    std::vector<std::byte> grain(12 + stream.size());
    base::store_le(grain.data(), index * header_.grain_bytes / kSector);
    base::store_le(grain.data() + 8, static_cast<std::uint32_t>(stream.size()));
    std::memcpy(grain.data() + 12, stream.data(), stream.size());
    DOPPEL_AWAIT_VOID(put(grain));
    co_return {};
}

Task<void> StreamWriter::finish() {
    DOPPEL_AWAIT_VOID(end_table());
    auto footer = header_;
    DOPPEL_AWAIT_VOID(put_marker(Marker::Directory, header_.directory_bytes() / kSector));
    footer.directory_at = position() * kSector;
    DOPPEL_AWAIT_VOID(put_words(directory_));
    DOPPEL_AWAIT_VOID(put_marker(Marker::Footer, 1));
    const auto sector = serialize_header(footer);
    DOPPEL_AWAIT_VOID(put(sector));
    DOPPEL_AWAIT_VOID(put_marker(Marker::EndOfStream, 0));
    DOPPEL_AWAIT_VOID(write_pending());
    if (!file_.fixed_size())
        DOPPEL_AWAIT_VOID(file_.resize(at_));
    DOPPEL_AWAIT_VOID(file_.flush());
    co_return {};
}

} // namespace doppel::block::vmdk
