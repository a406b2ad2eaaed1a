// SPDX-License-Identifier: Apache-2.0
/// Where new grains and tables go. The metadata lock is held.
#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/vmdk/sparse_extent.hpp"

namespace doppel::block::vmdk {

void SparseExtent::use(const Survey& survey) {
    end_ = survey.end;
    gaps_ = free_grains(survey);
    std::ranges::reverse(gaps_); // those at the beginning first
}

Task<void> SparseExtent::begin_writing() {
    CheckResult result;
    DOPPEL_AWAIT(found, survey(result));
    if (result.corruptions != 0)
        co_return base::fail(Errc::Corrupt,
                             fmt::format("'{}' is corrupt and cannot be written: {}", name(),
                                         result.findings.front()),
                             "Look at it with check.");
    if (header_.compressed()) {
        DOPPEL_AWAIT_VOID(begin_stream(found));
        co_return {};
    }
    use(found);
    fresh_from_ = file_->fixed_size() ? ~std::uint64_t{0} : file_->size();
    if (found.stale != 0)
        DOPPEL_AWAIT_VOID(copy_redundant());
    header_.unclean = header_dirty_ = marked_ = true;
    co_return {};
}

Task<void> SparseExtent::begin_stream(const Survey& found) {
    if (!found.grains.empty() || !is_stream())
        return ready<void>(base::fail(
            Errc::Unsupported,
            fmt::format("'{}' is stream-optimized: it is written once, when it is converted",
                        name()),
            "Convert it to monolithicSparse to change it."));
    stream_ = std::make_unique<StreamWriter>(*file_, header_);
    return ready<void>({});
}

CompressionKind SparseExtent::compression() const {
    return header_.compressed() && !read_only() && header_.grain_bytes == limits().cluster_bytes
               ? CompressionKind::Zlib
               : CompressionKind::None;
}

Task<void> SparseExtent::write_compressed(std::uint64_t offset, std::vector<std::byte> bytes) {
    DOPPEL_AWAIT_VOID(before_writing());
    if (!stream_ || within(offset) != 0)
        co_return cannot("compressed clusters there");
    DOPPEL_AWAIT_VOID(stream_->append(offset / header_.grain_bytes, bytes));
    co_return {};
}

Task<void> SparseExtent::end_writing() {
    if (stream_) {
        DOPPEL_AWAIT_VOID(stream_->finish());
        co_return {};
    }
    if (!marked_)
        co_return {};
    header_.unclean = marked_ = false;
    const auto bytes = serialize_header(header_);
    DOPPEL_AWAIT_VOID(file_->write(0, IoBuffer::of(bytes), Durability::Durable));
    co_return {};
}

Task<void> SparseExtent::write_ahead() {
    if (!header_dirty_)
        co_return {};
    const auto bytes = serialize_header(header_);
    DOPPEL_AWAIT_VOID(file_->write(0, IoBuffer::of(bytes), Durability::Cached));
    header_dirty_ = false;
    co_return {};
}

Task<ClusteredNode::Space> SparseExtent::allocate(std::uint64_t, std::uint64_t count) {
    if (stream_)
        return ready<Space>(
            base::fail(Errc::Unsupported,
                       "a stream-optimized image is written by convert, and by nothing else"));
    if (!gaps_.empty()) {
        const auto host = gaps_.back();
        gaps_.pop_back();
        return ready<Space>(Space{host, 1, false});
    }
    const auto host = align_up(end_);
    const auto last = host + count * header_.grain_bytes;
    if (last / kSector > kMaxSectorNumber)
        return ready<Space>(base::fail(Errc::NoSpace, "a sparse extent cannot be larger than 2 TiB",
                                       "Use subformat twoGbMaxExtentSparse."));
    const bool fresh = host >= fresh_from_;
    if (!fresh && fresh_from_ < last)
        count = std::max<std::uint64_t>(1, (fresh_from_ - host) / header_.grain_bytes);
    end_ = host + count * header_.grain_bytes;
    file_end_ = std::max(file_end_, end_);
    return ready<Space>(Space{host, count, fresh});
}

void SparseExtent::give_back(const Space& space) {
    for (auto i = space.count; i-- > 0;)
        gaps_.push_back(space.host + i * header_.grain_bytes);
}

Task<void> SparseExtent::set_word(std::uint64_t at, std::uint32_t value) {
    const auto slice = base::align_down(at, kSector);
    DOPPEL_AWAIT(bytes, tables_.load(slice));
    base::store_le(bytes + (at - slice), value);
    tables_.mark_dirty(slice);
    co_return {};
}

/// An empty table behind all else. It is durable before the directory names it.
Task<std::uint64_t> SparseExtent::new_table(std::uint64_t directory, std::uint64_t number) {
    const auto at = base::align_up(end_, kSector);
    if (at / kSector > kMaxSectorNumber)
        co_return base::fail(Errc::NoSpace, "a sparse extent cannot be larger than 2 TiB");
    end_ = at + header_.table_bytes();
    file_end_ = std::max(file_end_, end_);
    DOPPEL_AWAIT_VOID(
        file_->write_zeroes(at, header_.table_bytes(), Unmap::Keep, Durability::Cached));
    tables_.forget(at, header_.table_bytes());
    DOPPEL_AWAIT_VOID(set_word(directory + number * 4, static_cast<std::uint32_t>(at / kSector)));
    co_return at;
}

Task<void> SparseExtent::set_entry(std::uint64_t directory, std::uint64_t index,
                                   std::uint32_t value) {
    const auto number = index / header_.entries;
    DOPPEL_AWAIT(table, table_at(directory, number));
    if (table == 0 && value == 0)
        co_return {};
    if (table == 0) {
        DOPPEL_AWAIT(fresh, new_table(directory, number));
        table = fresh;
    }
    DOPPEL_AWAIT_VOID(set_word(table + index % header_.entries * 4, value));
    co_return {};
}

Task<void> SparseExtent::link(std::uint64_t index, ClusterRun run) {
    for (std::uint64_t i = 0; i < run.count; ++i) {
        const auto value =
            run.kind == ClusterKind::Data
                ? static_cast<std::uint32_t>((run.host + i * header_.grain_bytes) / kSector)
            : run.kind == ClusterKind::Zero ? kZeroGrain
                                            : 0;
        if (header_.redundant())
            DOPPEL_AWAIT_VOID(set_entry(header_.redundant_at, index + i, value));
        DOPPEL_AWAIT_VOID(set_entry(header_.directory_at, index + i, value));
    }
    co_return {};
}

Task<void> SparseExtent::release_all() {
    CheckResult result;
    DOPPEL_AWAIT(found, survey(result));
    use(found);
    gaps_.clear();
    file_end_ = 0;
    if (file_->fixed_size())
        co_return {};
    DOPPEL_AWAIT_VOID(file_->resize(std::max(end_, header_.overhead_bytes)));
    fresh_from_ = std::min(fresh_from_, file_->size());
    co_return {};
}

} // namespace doppel::block::vmdk
