// SPDX-License-Identifier: Apache-2.0
/// Bulk writing of a new image: space first, data by the caller or compressed.
#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

namespace {
constexpr std::uint64_t kPackingBytes = 512u << 10;

/// Space of a file that may end before it, or hold what was freed there.
Task<void> take_zeroes(Node& file, std::uint64_t offset, std::uint64_t length, Preallocation how) {
    if (offset < file.size())
        DOPPEL_AWAIT_VOID(file.write_zeroes(offset, std::min(length, file.size() - offset),
                                            Unmap::Allow, Durability::Cached));
    if (file.size() < offset + length)
        DOPPEL_AWAIT_VOID(file.resize(offset + length));
    DOPPEL_AWAIT_VOID(take_space(file, offset, length, how));
    co_return {};
}
} // namespace

Task<std::vector<Placement>> Qcow2Node::place(std::uint64_t offset, std::uint64_t length) {
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    std::vector<Placement> places;
    auto at = base::align_down(offset, geometry_.cluster());
    const auto end = base::align_up(offset + length, geometry_.cluster());
    while (at < end) {
        Plan plan;
        plan.guest = at;
        plan.count = (end - at) >> geometry_.cluster_bits;
        plan.old.resize(plan.count);
        DOPPEL_AWAIT_VOID(choose_hosts(plan));
        const auto bytes = plan.count << geometry_.cluster_bits;
        DOPPEL_AWAIT_VOID(link(plan, at, at + bytes));
        places.push_back({plan.host, bytes});
        at += bytes;
    }
    bitmaps_.mark(offset, std::min(length, size() - offset));
    DOPPEL_AWAIT_VOID(commit_if_pressed());
    co_return places;
}

CompressionKind Qcow2Node::compression() const {
    if (data_file_ || luks_) // encrypted ones would show how well they compress
        return CompressionKind::None;
    return header_.compression == Compression::Zstd ? CompressionKind::Zstd
                                                    : CompressionKind::Deflate;
}

/// Room for a compressed cluster at packed_at_; whether its beginning lies in a host cluster that
/// others use. The metadata lock is held.
Task<bool> Qcow2Node::make_room(std::uint64_t bytes) {
    // Several clusters at once, so that plain ones in between leave few gaps.
    const auto run = std::clamp<std::uint64_t>(kPackingBytes >> geometry_.cluster_bits, 1, 16);
    if (packed_at_ < packed_used_) {
        DOPPEL_AWAIT(references, refcounts_.get(packed_at_ >> geometry_.cluster_bits));
        if (references == geometry_.max_refcount())
            packed_at_ = packed_used_; // its width holds no more
    }
    if (packed_end_ - packed_at_ >= bytes)
        co_return packed_at_ < packed_used_;
    DOPPEL_AWAIT(fresh, allocate_metadata(run << geometry_.cluster_bits));
    if (fresh != packed_end_) {
        DOPPEL_AWAIT_VOID(release_packing());
        packed_at_ = packed_used_ = fresh;
    }
    packed_end_ = fresh + (run << geometry_.cluster_bits);
    co_return packed_at_ < packed_used_;
}

/// Gives back what is allocated for packing and holds nothing. The next compressed cluster begins
/// elsewhere: what lies beside it may be freed from now on, and its place used for something else.
Task<void> Qcow2Node::release_packing() {
    const auto first = packed_used_;
    const auto count = (packed_end_ - packed_used_) >> geometry_.cluster_bits;
    packed_at_ = packed_end_ = packed_used_;
    if (count > 0)
        DOPPEL_AWAIT_VOID(refcounts_.add(first >> geometry_.cluster_bits, count, -1));
    co_return {};
}

/// Compressed clusters lie byte to byte; each adds one reference to the host clusters it touches.
Task<std::uint64_t> Qcow2Node::pack(std::uint64_t bytes) {
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    DOPPEL_AWAIT(shares, make_room(bytes));
    if (shares) // a cluster nobody used has the reference that its allocation gave it
        DOPPEL_AWAIT_VOID(refcounts_.add(packed_at_ >> geometry_.cluster_bits, 1, +1));
    const auto at = packed_at_;
    packed_at_ += bytes;
    packed_used_ = base::align_up(packed_at_, geometry_.cluster());
    co_return at;
}

/// The table says so once the data is there.
Task<void> Qcow2Node::write_compressed(std::uint64_t offset, std::vector<std::byte> bytes) {
    if (data_file_ || luks_)
        co_return base::fail(Errc::Unsupported, "external or encrypted data cannot be compressed");
    DOPPEL_VERIFY(!bytes.empty() && bytes.size() < geometry_.cluster(), "it was compressed");
    DOPPEL_AWAIT(at, pack(bytes.size()));
    const Entry entry{compressed_word(at, bytes.size(), geometry_.cluster_bits), 0};
    const auto from = IoBuffer::of(bytes);
    auto data_task = file_->write(at, from, Durability::Cached);
    auto written = co_await data_task;
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    if (!written) {
        free_entry(entry, false);
        co_return written;
    }
    DOPPEL_AWAIT(old, entry_at(offset));
    DOPPEL_AWAIT_VOID(set_entry(offset, entry));
    free_entry(old, false);
    bitmaps_.mark(offset, std::min(geometry_.cluster(), size() - offset));
    barrier_ = true;
    co_return {};
}

/// Clusters from `at` on, up to `count`; how many bytes they have. What the host keeps there is
/// zeroes before the tables name it, so that nothing old shows.
Task<std::uint64_t> Qcow2Node::preallocate_some(std::uint64_t at, std::uint64_t count,
                                                Preallocation how) {
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    Plan plan;
    plan.guest = at;
    plan.count = count;
    plan.old.resize(count);
    DOPPEL_AWAIT_VOID(choose_hosts(plan));
    const auto bytes = plan.count << geometry_.cluster_bits;
    auto& store = data_file_ ? *data_file_ : *file_;
    auto taking =
        take_zeroes(store, plan.host, std::min(bytes, data_file_ ? size() - at : bytes), how);
    if (auto taken = co_await taking; !taken) {
        DOPPEL_AWAIT_VOID(undo(plan));
        co_return std::unexpected(std::move(taken).error());
    }
    barrier_ = true;
    DOPPEL_AWAIT_VOID(link(plan, at, at + bytes));
    if (!luks_) // the tables say something else in a moment
        DOPPEL_AWAIT_VOID(commit_if_pressed());
    co_return bytes;
}

Task<void> Qcow2Node::preallocate(std::uint64_t from, Preallocation how) {
    constexpr std::uint64_t kStep = std::uint64_t{1} << 30;
    const auto end = base::align_up(size(), geometry_.cluster());
    for (auto at = base::align_up(from, geometry_.cluster()); at < end;) {
        DOPPEL_AWAIT(
            bytes, preallocate_some(at, std::min(kStep, end - at) >> geometry_.cluster_bits, how));
        if (luks_) // zeroes of the file are noise to the guest: the tables say zero
            DOPPEL_AWAIT_VOID(empty_clusters(at, at + bytes, Emptying::ZeroKeep));
        at += bytes;
    }
    co_return {};
}

} // namespace doppel::block::qcow2
