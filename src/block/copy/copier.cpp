// SPDX-License-Identifier: Apache-2.0
#include "block/copy/copier.hpp"

#include <algorithm>

#include "base/bytes.hpp"
#include "block/aligned_memory.hpp"
#include "block/copy/huge_pages.hpp"
#include "block/extents.hpp"

namespace doppel::block {

namespace {

constexpr std::uint64_t kChunk = 1u << 20; // stays in the cache from the read to the write
constexpr std::uint64_t kSharedChunk = 256u << 20;
constexpr std::uint64_t kBatch = 16u << 20;    // moved in one go
constexpr std::uint64_t kUnseen = 63 * kChunk; // between two samples

/// Of O_DIRECT files the bytes must go through the node.
int plain_descriptor(Node* node) {
    if (node == nullptr || node->limits().memory_alignment > 1)
        return -1;
    return node->descriptor().value_or(-1);
}

/// What lies behind the last boundary of a huge page, of what is side by side up to the end.
std::vector<Move> split_off_tail(std::vector<Move>& moves) {
    const auto boundary = base::align_down(moves.back().to_end(), kHugePage);
    std::vector<Move> tail;
    while (!moves.empty() && moves.back().to_end() > boundary &&
           (tail.empty() || moves.back().to_end() == tail.front().to_offset)) {
        const auto last = moves.back();
        moves.pop_back();
        if (const auto front = last.within(0, boundary); front.length > 0)
            moves.push_back(front);
        tail.insert(tail.begin(), last.within(boundary, last.to_end()));
    }
    return tail;
}

} // namespace

Copier::Copier(IoContext& context, Node& source, ImageNode& target, CopyOptions options)
    : context_{context}, source_{source}, target_{target}, options_{std::move(options)},
      size_{std::min(source.size(), target.size())}, flat_{plain_descriptor(&source) >= 0},
      can_place_{options_.bulk && target.plain_data() && plain_descriptor(target.file()) >= 0},
      can_move_{options_.unseen && can_place_ && !options_.compress && !options_.salvage},
      pace_{context, options_.bytes_per_second, options_.stop},
      ordered_{options_.compress && target.is_stream()}, turns_{context}, finding_{context},
      writing_{context} {
    const bool in_memory = can_move_ && lives_in_memory(plain_descriptor(target.file()));
    ways_.huge_pages = in_memory;
    ways_.fresh_pages = in_memory;
}

/// A source without any holes may be full of zeroes nevertheless.
bool Copier::source_knows_holes() const {
    if (source_.limits().cluster_bytes != 0)
        return true;
    const auto allocated = source_.allocated_bytes();
    return allocated && *allocated < source_.size() - source_.size() / 16;
}

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

/// Zeroes are dealt with at once; yields nothing at the end. The caller holds finding_.
Task<std::optional<Copier::Chunk>> Copier::next_chunk() {
    if (held_)
        co_return std::exchange(held_, std::nullopt);
    const auto grain = std::max(unit(), std::uint64_t{1});
    while (next_ < size_) {
        DOPPEL_AWAIT(extent, deep_status(source_, next_, size_ - next_));
        const bool skip = options_.skip_unallocated && !extent.allocated;
        // How much of it is whole units of the target.
        const auto end = next_ + extent.length;
        const auto clear = end >= size_          ? size_ - next_
                           : end < next_ + grain ? 0
                                                 : base::align_down(end, grain) - next_;
        if ((skip || extent.content == Content::Zero) && clear > 0) {
            if (!skip)
                DOPPEL_AWAIT_VOID(zero(next_, clear));
            done(clear);
            next_ += clear;
            continue;
        }
        auto chunk = chunk_of(extent, clear);
        next_ += chunk.length;
        DOPPEL_AWAIT_VOID(sample(chunk));
        co_return std::optional{chunk};
    }
    co_return std::optional<Chunk>{};
}

/// Of what lies at next_: `clear` are bytes in whole units of the target.
Copier::Chunk Copier::chunk_of(const Extent& extent, std::uint64_t clear) {
    const auto grain = std::max(unit(), std::uint64_t{1});
    const bool data = extent.content == Content::Data;
    Chunk chunk;
    chunk.offset = next_;
    chunk.extent = extent;
    chunk.plain =
        extent.host && plain_descriptor(extent.place) >= 0 && (flat_ || (data && clear > 0));
    auto covered = clear > 0 ? clear : grain;
    if (flat_ && data) // the unit that the data ends in is data, too, and can be read in one go
        covered = base::align_up(next_ + extent.length, grain) - next_;
    covered = std::min(covered, size_ - next_);
    const auto allowed = shares_ ? kSharedChunk : std::min(unseen_bytes_, kBatch);
    chunk.unseen = chunk.plain && can_move_ && allowed >= std::min(covered, grain);
    const auto limit =
        chunk.unseen ? std::max(base::align_down(allowed, grain), grain) : std::max(kChunk, grain);
    chunk.length = std::min(limit, covered);
    if (chunk.unseen && !shares_)
        unseen_bytes_ -= std::min(unseen_bytes_, chunk.length);
    return chunk;
}

/// Looks at what would be moved unseen if no zeroes were in the way.
Task<void> Copier::sample(Chunk& chunk) {
    if (!can_move_ || !chunk.plain || chunk.unseen || !dense_)
        co_return {};
    DOPPEL_AWAIT_VOID(read_chunk(chunk, sample_));
    chunk.unseen = dense_;
    co_return {};
}

/// What one lane does next; empty at the end.
Task<Copier::Batch> Copier::next_batch() {
    auto wait = finding_.lock();
    auto guard = co_await wait;
    Batch batch;
    for (std::uint64_t bytes = 0; bytes < kBatch;) {
        DOPPEL_AWAIT(chunk, next_chunk());
        if (!chunk)
            break;
        if (!batch.chunks.empty() && !chunk->unseen) {
            held_ = chunk;
            break;
        }
        bytes += chunk->length;
        chunk->number = found_++;
        batch.chunks.push_back(*chunk);
        if (!chunk->unseen)
            co_return batch;
    }
    DOPPEL_AWAIT_VOID(place(batch));
    co_return batch;
}

/// Of chunks that nobody looks at. Batches end on the boundaries of huge pages if they can: what is
/// behind the last one waits for the next batch.
Task<void> Copier::place(Batch& batch) {
    batch.moves = std::exchange(waiting_, {});
    const int to = plain_descriptor(target_.file());
    for (const auto& chunk : batch.chunks) {
        DOPPEL_AWAIT(places, target_.place(chunk.offset, chunk.length));
        const auto host = chunk.extent.host.value_or(0); // there is one: it is `plain`
        std::uint64_t done_bytes = 0;
        for (const auto& place : places) {
            const auto part = std::min(place.length, chunk.length - done_bytes);
            batch.moves.push_back(
                {plain_descriptor(chunk.extent.place), to, host + done_bytes, place.host, part});
            done_bytes += part;
        }
    }
    if (!batch.chunks.empty() && ways_.huge_pages && !ways_.share)
        waiting_ = split_off_tail(batch.moves);
    co_return {};
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
    auto wait = context_.on_worker([&, this] {
        if (chunk.plain)
            work.outcome =
                read_all(plain_descriptor(chunk.extent.place), work.bytes, *chunk.extent.host);
        look_at(chunk, work);
    });
    co_await wait;
    dense_ = std::ranges::none_of(work.zero, std::identity{});
    unseen_bytes_ = dense_ ? std::max(unseen_bytes_, kUnseen) : 0;
    co_return work.outcome;
}

/// On a worker: which units are zeroes, and what the others are compressed.
void Copier::look_at(const Chunk& chunk, Work& work) const {
    const auto grain = unit();
    const auto units = (chunk.length + grain - 1) / grain;
    const auto kind = target_.compression();
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
        work.packed[i] = kind == CompressionKind::Zlib ? codec::zlib(whole, options_.effort)
                         : kind == CompressionKind::Zstd
                             ? codec::zstd(whole, grain, options_.effort)
                             : codec::deflate(whole, grain, options_.effort);
    }
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
    auto writing = writing_.lock();
    auto guard = co_await writing;
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

Task<void> Copier::move_batch(const Batch& batch) {
    Result<void> outcome;
    auto ways = ways_;
    auto wait = context_.on_worker([&] { outcome = move_data(batch.moves, ways); });
    if (ways.in_memory()) {
        co_await wait;
    } else {
        auto writing = writing_.lock();
        auto guard = co_await writing;
        co_await wait;
    }
    ways_ = {ways_.share && ways.share, ways_.huge_pages && ways.huge_pages,
             ways_.fresh_pages && ways.fresh_pages, ways_.in_kernel && ways.in_kernel,
             ways.plain_cost};
    can_move_ = can_move_ && ways_.unseen(); // through memory it may as well be looked at
    co_return outcome;
}

Task<void> Copier::copy_chunk(const Chunk& chunk, Work& work) {
    DOPPEL_AWAIT_VOID(read_chunk(chunk, work));
    if (ordered_)
        DOPPEL_AWAIT_VOID(store_in_turn(chunk, work));
    else if (options_.compress)
        DOPPEL_AWAIT_VOID(store_compressed(chunk, work));
    else
        DOPPEL_AWAIT_VOID(store(chunk, work));
    co_return {};
}

Task<void> Copier::store_in_turn(const Chunk& chunk, Work& work) {
    auto wait = turns_.turn(chunk.number);
    const bool mine = co_await wait;
    if (!mine)
        co_return {}; // another lane has failed, and says why
    DOPPEL_AWAIT_VOID(store_compressed(chunk, work));
    turns_.pass();
    co_return {};
}

/// What ends one lane ends all.
Task<void> Copier::lane() {
    auto task = copy_batches();
    auto outcome = co_await task;
    if (!outcome) {
        next_ = size_;
        held_.reset();
        waiting_.clear();
        turns_.end();
    }
    co_return outcome;
}

Task<void> Copier::copy_batches() {
    Work work;
    while (true) {
        DOPPEL_AWAIT(batch, next_batch());
        if (batch.empty())
            co_return {};
        for (const auto& chunk : batch.chunks)
            DOPPEL_AWAIT_VOID(pace_.wait(chunk.length));
        if (options_.stop != nullptr && *options_.stop)
            co_return base::fail(Errc::Interrupted, "interrupted");
        if (batch.unseen())
            DOPPEL_AWAIT_VOID(move_batch(batch));
        else
            DOPPEL_AWAIT_VOID(copy_chunk(batch.chunks[0], work));
        for (const auto& chunk : batch.chunks)
            done(chunk.length);
    }
}

/// Whether the files can share extents shows when they try, with the first unit.
Task<void> Copier::try_sharing() {
    unseen_bytes_ = unit();
    DOPPEL_AWAIT(chunk, next_chunk());
    if (!chunk || !chunk->unseen) {
        held_ = chunk;
        co_return {};
    }
    Batch batch;
    chunk->number = found_++;
    batch.chunks.push_back(*chunk);
    DOPPEL_AWAIT_VOID(place(batch));
    DOPPEL_AWAIT_VOID(move_batch(batch));
    shares_ = ways_.share;
    done(chunk->length);
    co_return {};
}

Task<void> Copier::run() {
    if (can_move_)
        DOPPEL_AWAIT_VOID(try_sharing());
    can_move_ = can_move_ && (shares_ || source_knows_holes());
    const auto lanes = options_.parallel != 0 ? options_.parallel : context_.workers().limit() * 2;
    std::vector<Task<void>> tasks;
    tasks.reserve(lanes);
    for (unsigned i = 0; i < lanes; ++i)
        tasks.push_back(lane());
    DOPPEL_AWAIT_VOID(all_of(std::move(tasks)));
    co_return {};
}

} // namespace doppel::block
