// SPDX-License-Identifier: Apache-2.0
#include "block/copy/copier.hpp"

#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/aligned_memory.hpp"

namespace doppel::block {

namespace {

constexpr std::uint64_t kChunk = 1u << 20; // stays in the cache from the read to the write
constexpr std::uint64_t kSharedChunk = 256u << 20;
constexpr std::uint64_t kShareAlignment = 4096;

Result<void> read_all(int fd, std::span<std::byte> into, std::uint64_t offset) {
    for (std::size_t done = 0; done < into.size();) {
        const auto got =
            ::pread(fd, into.data() + done, into.size() - done, static_cast<off_t>(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return base::fail_errno(errno, fmt::format("read {} bytes at {}", into.size(), offset));
        if (got == 0) {
            std::fill(into.begin() + static_cast<std::ptrdiff_t>(done), into.end(), std::byte{0});
            break;
        }
        done += static_cast<std::size_t>(got);
    }
    return {};
}

Result<void> write_all(int fd, std::span<const std::byte> from, std::uint64_t offset) {
    for (std::size_t done = 0; done < from.size();) {
        const auto put =
            ::pwrite(fd, from.data() + done, from.size() - done, static_cast<off_t>(offset + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return base::fail_errno(errno,
                                    fmt::format("write {} bytes at {}", from.size(), offset));
        done += static_cast<std::size_t>(put);
    }
    return {};
}

/// Of O_DIRECT files the bytes must go through the node.
int plain_descriptor(Node* node) {
    if (node == nullptr || node->limits().memory_alignment > 1)
        return -1;
    return node->descriptor().value_or(-1);
}

} // namespace

struct Copier::Work {
    AlignedMemory memory; // of one lane, used again and again
    std::span<std::byte> bytes;
    std::vector<bool> zero;                     // per unit
    std::vector<std::vector<std::byte>> packed; // per unit; empty: stays plain
    Result<void> outcome;

    std::span<const std::byte> part(std::uint64_t index, std::uint64_t unit) const {
        const std::span<const std::byte> all = bytes;
        return all.subspan(index * unit, std::min<std::uint64_t>(unit, all.size() - index * unit));
    }
};

Copier::Copier(IoContext& context, Node& source, ImageNode& target, CopyOptions options)
    : context_{context}, source_{source}, target_{target}, options_{std::move(options)},
      size_{std::min(source.size(), target.size())},
      can_place_{options_.bulk && plain_descriptor(target.file()) >= 0},
      can_share_{options_.share && can_place_ && !options_.compress}, finding_{context} {}

/// The grain in which zeroes are told from data.
std::uint64_t Copier::unit() const {
    const auto cluster = target_.limits().cluster_bytes;
    if (cluster != 0)
        return cluster;
    return options_.sparse_bytes == 0 ? kChunk
                                      : std::max<std::uint64_t>(options_.sparse_bytes, 512);
}

void Copier::done(std::uint64_t bytes) {
    if (options_.progress)
        options_.progress(bytes);
}

/// Zeroes are dealt with at once; yields false at the end.
Task<bool> Copier::next_chunk(Chunk& chunk) {
    auto wait = finding_.lock();
    auto guard = co_await wait;
    const auto grain = std::max(unit(), std::uint64_t{1});
    const auto most = std::max(kChunk, grain);
    while (next_ < size_) {
        DOPPEL_AWAIT(extent, source_.status(next_, size_ - next_));
        const bool skip = options_.skip_unallocated && !extent.allocated;
        const auto whole = base::align_down(next_ + extent.length, grain) - next_;
        const bool to_end = next_ + extent.length >= size_;
        const auto clear = to_end                                  ? size_ - next_
                           : next_ + extent.length < next_ + grain ? 0
                                                                   : whole;
        if ((skip || extent.content == Content::Zero) && clear > 0) {
            if (!skip)
                DOPPEL_AWAIT_VOID(zero(next_, clear));
            done(clear);
            next_ += clear;
            continue;
        }
        chunk.offset = next_;
        chunk.extent = extent;
        chunk.plain =
            extent.content == Content::Data && extent.host && plain_descriptor(extent.place) >= 0;
        const auto limit = can_share_ && chunk.plain ? kSharedChunk : most;
        const bool one_extent = extent.length >= grain && clear > 0;
        chunk.length = std::min({limit, size_ - next_, one_extent ? clear : grain});
        chunk.plain = chunk.plain && chunk.length <= extent.length;
        next_ += chunk.length;
        co_return true;
    }
    co_return false;
}

Task<void> Copier::zero(std::uint64_t offset, std::uint64_t length) {
    if (options_.target_is_zero)
        return ready<void>({});
    return target_.write_zeroes(offset, length, Unmap::Allow, Durability::Cached);
}

Task<void> Copier::read_chunk(const Chunk& chunk, Work& work) {
    if (work.memory.size() < chunk.length)
        work.memory = AlignedMemory::uninitialized(chunk.length);
    work.bytes = work.memory.span().first(chunk.length);
    work.outcome = {};
    const auto grain = unit();
    if (!chunk.plain) {
        auto read_task = source_.read(chunk.offset, IoBuffer{work.bytes});
        auto read = co_await read_task;
        if (!read && options_.salvage) {
            if (options_.warn)
                options_.warn(read.error().message());
            std::ranges::fill(work.bytes, std::byte{0});
        } else if (!read) {
            co_return read;
        }
    }
    const bool zstd = target_.compression() == CompressionKind::Zstd;
    const auto units = (chunk.length + grain - 1) / grain;
    auto wait = context_.on_worker([&, this] {
        if (chunk.plain)
            work.outcome =
                read_all(plain_descriptor(chunk.extent.place), work.bytes, *chunk.extent.host);
        work.zero.assign(units, false);
        work.packed.assign(options_.compress ? units : 0, {});
        for (std::uint64_t i = 0; i < units; ++i) {
            const auto part = work.part(i, grain);
            work.zero[i] = options_.sparse_bytes != 0 && all_zero(part);
            if (!options_.compress || work.zero[i])
                continue;
            std::vector<std::byte> padded;
            auto whole = part;
            if (part.size() < grain) { // the disk's end cuts the last cluster
                padded.assign(part.begin(), part.end());
                padded.resize(grain);
                whole = padded;
            }
            work.packed[i] = zstd ? codec::zstd(whole, grain, options_.effort)
                                  : codec::deflate(whole, grain, options_.effort);
        }
    });
    co_await wait;
    co_return work.outcome;
}

Task<void> Copier::store_range(const Chunk& chunk, Work& work, std::uint64_t begin,
                               std::uint64_t end) {
    const auto bytes = work.bytes.subspan(begin, end - begin);
    if (!can_place_) {
        DOPPEL_AWAIT_VOID(target_.write(chunk.offset + begin, IoBuffer{bytes}, Durability::Cached));
        co_return {};
    }
    auto place_task = target_.place(chunk.offset + begin, end - begin);
    auto places = co_await place_task;
    if (!places && places.error().code == Errc::Unsupported) {
        can_place_ = false;
        DOPPEL_AWAIT_VOID(target_.write(chunk.offset + begin, IoBuffer{bytes}, Durability::Cached));
        co_return {};
    }
    if (!places)
        co_return std::unexpected(std::move(places).error());
    const int fd = plain_descriptor(target_.file());
    Result<void> outcome;
    auto wait = context_.on_worker([&] {
        std::size_t done_bytes = 0;
        for (const auto& place : *places) {
            const auto part = std::min<std::size_t>(place.length, bytes.size() - done_bytes);
            if (outcome)
                outcome = write_all(fd, bytes.subspan(done_bytes, part), place.host);
            done_bytes += part;
        }
    });
    co_await wait;
    co_return outcome;
}

Task<void> Copier::store_compressed(const Chunk& chunk, Work& work) {
    const auto grain = unit();
    for (std::uint64_t i = 0; i < work.zero.size(); ++i) {
        const auto begin = i * grain;
        const auto end = std::min(begin + grain, chunk.length);
        if (work.zero[i])
            DOPPEL_AWAIT_VOID(zero(chunk.offset + begin, end - begin));
        else if (work.packed[i].empty())
            DOPPEL_AWAIT_VOID(store_range(chunk, work, begin, end));
        else
            DOPPEL_AWAIT_VOID(
                target_.write_compressed(chunk.offset + begin, std::move(work.packed[i])));
    }
    co_return {};
}

Task<void> Copier::store(const Chunk& chunk, Work& work) {
    const auto grain = unit();
    for (std::uint64_t i = 0; i < work.zero.size();) {
        auto next = i + 1;
        while (next < work.zero.size() && work.zero[next] == work.zero[i])
            ++next;
        const auto begin = i * grain;
        const auto end = std::min(next * grain, chunk.length);
        if (work.zero[i])
            DOPPEL_AWAIT_VOID(zero(chunk.offset + begin, end - begin));
        else
            DOPPEL_AWAIT_VOID(store_range(chunk, work, begin, end));
        i = next;
    }
    co_return {};
}

/// Both files point to the same extents; false when the file system cannot.
Task<bool> Copier::share_chunk(const Chunk& chunk) {
    const auto from = *chunk.extent.host;
    if (((from | chunk.length) & (kShareAlignment - 1)) != 0)
        co_return false;
    file_clone_range probe{plain_descriptor(chunk.extent.place), from, kShareAlignment, 0};
    const int fd = plain_descriptor(target_.file());
    DOPPEL_AWAIT(places, target_.place(chunk.offset, chunk.length));
    std::uint64_t done_bytes = 0;
    bool shared = true;
    for (const auto& place : places) {
        const auto part = std::min(place.length, chunk.length - done_bytes);
        probe.src_offset = from + done_bytes;
        probe.src_length = part;
        probe.dest_offset = place.host;
        shared = shared && ::ioctl(fd, FICLONERANGE, &probe) == 0;
        if (!shared) { // the clusters are there: fill them the ordinary way
            can_share_ = false;
            std::vector<std::byte> bytes(std::min(part, kChunk));
            for (std::uint64_t at = 0; at < part; at += kChunk) {
                const auto piece = std::span{bytes}.first(std::min(part - at, kChunk));
                DOPPEL_CO_TRY_VOID(
                    read_all(static_cast<int>(probe.src_fd), piece, from + done_bytes + at));
                DOPPEL_CO_TRY_VOID(write_all(fd, piece, place.host + at));
            }
        }
        done_bytes += part;
    }
    co_return true;
}

Task<void> Copier::copy_chunk(const Chunk& chunk, Work& work) {
    if (can_share_ && chunk.plain) {
        DOPPEL_AWAIT(shared, share_chunk(chunk));
        if (shared)
            co_return {};
    }
    DOPPEL_AWAIT_VOID(read_chunk(chunk, work));
    if (options_.compress)
        DOPPEL_AWAIT_VOID(store_compressed(chunk, work));
    else
        DOPPEL_AWAIT_VOID(store(chunk, work));
    co_return {};
}

Task<void> Copier::lane() {
    Work work;
    while (true) {
        Chunk chunk;
        DOPPEL_AWAIT(more, next_chunk(chunk));
        if (!more)
            co_return {};
        if (options_.stop != nullptr && *options_.stop)
            co_return base::fail(Errc::Interrupted, "interrupted");
        for (std::uint64_t at = 0; at < chunk.length;) {
            // A chunk that was cut for sharing is copied in ordinary pieces when that fails.
            Chunk piece = chunk;
            piece.offset += at;
            piece.length = can_share_ && chunk.plain
                               ? chunk.length - at
                               : std::min(chunk.length - at, std::max(kChunk, unit()));
            if (piece.extent.host)
                piece.extent.host = *chunk.extent.host + at;
            auto task = copy_chunk(piece, work);
            auto copied = co_await task;
            if (!copied) {
                next_ = size_; // the other lanes end, too
                co_return copied;
            }
            done(piece.length);
            at += piece.length;
        }
    }
}

Task<void> Copier::run() {
    const auto lanes = options_.parallel != 0 ? options_.parallel : context_.workers().limit() * 2;
    std::vector<Task<void>> tasks;
    for (unsigned i = 0; i < lanes; ++i)
        tasks.push_back(lane());
    return all_of(std::move(tasks));
}

} // namespace doppel::block
