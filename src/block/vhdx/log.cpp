// SPDX-License-Identifier: Apache-2.0
#include "block/vhdx/log.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "base/crc32c.hpp"

namespace doppel::block::vhdx {

using base::load_le;
using base::store_le;

namespace {

constexpr std::uint32_t kEntrySignature = 0x65676f6c; // "loge"
constexpr std::uint32_t kDataSignature = 0x63736564;  // "desc"
constexpr std::uint32_t kZeroSignature = 0x6f72657a;  // "zero"
constexpr std::uint32_t kPageSignature = 0x61746164;  // "data"
constexpr std::uint64_t kHeadBytes = 64, kDescriptorBytes = 32;
constexpr std::size_t kLeading = 8, kTrailing = 4; // bytes of a page that its descriptor holds
constexpr std::size_t kMaxWrites = 1u << 16;

std::unexpected<base::Error> corrupt(std::string text) {
    return base::fail(Errc::Corrupt, std::move(text), "The log cannot be replayed.");
}

std::uint64_t descriptor_pages(std::uint64_t count) {
    return (kHeadBytes + count * kDescriptorBytes + kLogPage - 1) / kLogPage;
}

struct Entry {
    std::uint64_t at = 0; // in the ring
    std::uint64_t bytes = 0;
    std::uint64_t tail = 0;
    std::uint64_t sequence = 0;
    std::uint64_t flushed_bytes = 0;
    std::uint64_t last_bytes = 0;
};

class Ring {
public:
    Ring(std::span<const std::byte> bytes, const Uuid& id) : bytes_{bytes}, id_{id} {}

    /// The entries to replay, or none.
    Result<std::vector<Entry>> active() {
        std::vector<Entry> best;
        for (std::uint64_t tail = 0; tail < bytes_.size();) {
            auto chain = chain_at(tail);
            if (budget_ == 0)
                return corrupt("the log's entries overlap");
            std::uint64_t length = chain.empty() ? kLogPage : 0;
            for (const auto& entry : chain)
                length += entry.bytes;
            tail += length;
            if (chain.empty() || (!best.empty() && chain.back().sequence <= best.back().sequence))
                continue;
            const auto first = std::ranges::find(chain, chain.back().tail, &Entry::at);
            if (first != chain.end())
                best.assign(first, chain.end());
        }
        return best;
    }

    Result<void> append_writes(const Entry& entry, Replay& replay) const {
        const auto bytes = copy(entry.at, entry.bytes);
        const auto count = load_le<std::uint32_t>(bytes.data() + 24);
        auto page = descriptor_pages(count) * kLogPage;
        for (std::uint64_t i = 0; i < count; ++i) {
            const auto* descriptor = bytes.data() + kHeadBytes + i * kDescriptorBytes;
            LogWrite write;
            write.offset = load_le<std::uint64_t>(descriptor + 16);
            const auto signature = load_le<std::uint32_t>(descriptor);
            const bool data = signature == kDataSignature;
            if (load_le<std::uint64_t>(descriptor + 24) != entry.sequence ||
                (!data && signature != kZeroSignature))
                return corrupt(
                    fmt::format("descriptor {} of log entry {} is damaged", i, entry.sequence));
            if (!data)
                write.zero_bytes = load_le<std::uint64_t>(descriptor + 8);
            if (data) {
                const std::uint32_t high = load_le<std::uint32_t>(bytes.data() + page + 4);
                const std::uint32_t low =
                    load_le<std::uint32_t>(bytes.data() + page + kLogPage - 4);
                if (load_le<std::uint32_t>(bytes.data() + page) != kPageSignature ||
                    (std::uint64_t{high} << 32 | low) != entry.sequence)
                    return corrupt(
                        fmt::format("a page of log entry {} is damaged", entry.sequence));
                write.page.assign(bytes.begin() + static_cast<std::ptrdiff_t>(page),
                                  bytes.begin() + static_cast<std::ptrdiff_t>(page + kLogPage));
                std::memcpy(write.page.data(), descriptor + 8, kLeading);
                std::memcpy(write.page.data() + kLogPage - kTrailing, descriptor + 4, kTrailing);
                page += kLogPage;
            }
            const auto length = data ? kLogPage : write.zero_bytes;
            if (write.offset % kLogPage != 0 || length % kLogPage != 0 ||
                write.offset > replay.file_bytes || length > replay.file_bytes - write.offset)
                return corrupt(fmt::format("log entry {} writes {} bytes at {:#x}, past the "
                                           "file's {} bytes",
                                           entry.sequence, length, write.offset,
                                           replay.file_bytes));
            if (replay.writes.size() == kMaxWrites)
                return corrupt(fmt::format("the log holds more than {} writes", kMaxWrites));
            replay.writes.push_back(std::move(write));
        }
        return {};
    }

private:
    std::vector<std::byte> copy(std::uint64_t at, std::uint64_t length) const {
        std::vector<std::byte> out(length);
        const auto first = std::min<std::uint64_t>(length, bytes_.size() - at);
        std::memcpy(out.data(), bytes_.data() + at, first);
        std::memcpy(out.data() + first, bytes_.data(), length - first);
        return out;
    }

    /// Valid entries one behind the other, with consecutive sequence numbers.
    std::vector<Entry> chain_at(std::uint64_t at) {
        std::vector<Entry> chain;
        std::uint64_t length = 0;
        while (const auto entry = entry_at((at + length) % bytes_.size())) {
            if (!chain.empty() && entry->sequence != chain.back().sequence + 1)
                break;
            length += entry->bytes;
            if (length > bytes_.size())
                break;
            chain.push_back(*entry);
        }
        return chain;
    }

    std::optional<Entry> entry_at(std::uint64_t at) {
        const auto* head = bytes_.data() + at;
        const auto word = [&](std::size_t i) { return load_le<std::uint32_t>(head + i); };
        const auto count = word(24);
        Entry entry{at,
                    word(8),
                    word(12),
                    load_le<std::uint64_t>(head + 16),
                    load_le<std::uint64_t>(head + 48),
                    load_le<std::uint64_t>(head + 56)};
        if (word(0) != kEntrySignature || std::memcmp(head + 32, id_.data(), id_.size()) != 0 ||
            entry.bytes == 0 || entry.bytes % kLogPage != 0 || entry.bytes > bytes_.size() ||
            entry.tail % kLogPage != 0 || entry.sequence == 0 ||
            descriptor_pages(count) * kLogPage > entry.bytes)
            return std::nullopt;
        // Each byte is summed a few times at most, whatever the entries claim.
        const auto limit = bytes_.size() * 4;
        if (summed_ + entry.bytes > limit) {
            budget_ = 0;
            return std::nullopt;
        }
        summed_ += entry.bytes;
        auto bytes = copy(at, entry.bytes);
        store_le(bytes.data() + 4, std::uint32_t{0});
        if (base::crc32c(bytes) != word(4))
            return std::nullopt;
        std::uint64_t data_pages = 0;
        for (std::uint64_t i = 0; i < count; ++i)
            data_pages += load_le<std::uint32_t>(bytes.data() + kHeadBytes +
                                                 i * kDescriptorBytes) == kDataSignature;
        if ((descriptor_pages(count) + data_pages) * kLogPage > entry.bytes)
            return std::nullopt;
        return entry;
    }

    std::span<const std::byte> bytes_;
    const Uuid& id_;
    std::uint64_t summed_ = 0;
    unsigned budget_ = 1;
};

} // namespace

Result<Replay> read_log(std::span<const std::byte> ring, const Uuid& id, std::uint64_t file_bytes) {
    Replay replay;
    replay.file_bytes = file_bytes;
    if (ring.empty())
        return replay;
    Ring log{ring, id};
    const auto entries = DOPPEL_TRY(log.active());
    for (const auto& entry : entries) {
        if (entry.flushed_bytes > file_bytes)
            return corrupt(fmt::format("the file has {} bytes, the log knows of {}", file_bytes,
                                       entry.flushed_bytes));
        if (entry.last_bytes > kMaxDiskBytes * 2)
            return corrupt(fmt::format("log entry {} wants a file of {} bytes", entry.sequence,
                                       entry.last_bytes));
        replay.file_bytes = std::max(replay.file_bytes, entry.last_bytes);
    }
    for (const auto& entry : entries)
        DOPPEL_TRY_VOID(log.append_writes(entry, replay));
    return replay;
}

std::uint64_t log_entry_bytes(std::uint64_t pages) {
    return (descriptor_pages(pages) + pages) * kLogPage;
}

std::vector<std::byte> log_entry(const Uuid& id, std::uint64_t sequence, std::uint64_t at,
                                 std::uint64_t file_bytes,
                                 const std::map<std::uint64_t, const std::byte*>& pages) {
    std::vector<std::byte> bytes(log_entry_bytes(pages.size()));
    store_le(bytes.data(), kEntrySignature);
    store_le(bytes.data() + 8, static_cast<std::uint32_t>(bytes.size()));
    store_le(bytes.data() + 12, static_cast<std::uint32_t>(at)); // the tail: itself
    store_le(bytes.data() + 16, sequence);
    store_le(bytes.data() + 24, static_cast<std::uint32_t>(pages.size()));
    std::ranges::copy(id, bytes.begin() + 32);
    store_le(bytes.data() + 48, file_bytes);
    store_le(bytes.data() + 56, file_bytes);
    auto* descriptor = bytes.data() + kHeadBytes;
    auto* page = bytes.data() + descriptor_pages(pages.size()) * kLogPage;
    for (const auto& [offset, content] : pages) {
        store_le(descriptor, kDataSignature);
        std::memcpy(descriptor + 4, content + kLogPage - kTrailing, kTrailing);
        std::memcpy(descriptor + 8, content, kLeading);
        store_le(descriptor + 16, offset);
        store_le(descriptor + 24, sequence);
        std::memcpy(page, content, kLogPage);
        store_le(page, kPageSignature);
        store_le(page + 4, static_cast<std::uint32_t>(sequence >> 32));
        store_le(page + kLogPage - 4, static_cast<std::uint32_t>(sequence));
        descriptor += kDescriptorBytes;
        page += kLogPage;
    }
    store_le(bytes.data() + 4, base::crc32c(bytes));
    return bytes;
}

} // namespace doppel::block::vhdx
