// SPDX-License-Identifier: Apache-2.0
#include "block/clustered/clustered_node.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::block {

namespace {
/// Zeroes are told from data in this grain when an image is filled in bulk, however large the
/// clusters are: what is not written stays a hole in the file.
constexpr std::uint64_t kGrain = 64u << 10;
} // namespace

ClusteredNode::ClusteredNode(OpenRequest& request, std::uint64_t size_bytes,
                             std::uint64_t cluster_bytes, std::uint32_t sector_bytes)
    : context_{*request.context}, options_{request.options}, file_{std::move(request.file)},
      size_bytes_{size_bytes}, cluster_bytes_{cluster_bytes}, sector_bytes_{sector_bytes},
      guests_{context_}, metadata_{context_} {}

Limits ClusteredNode::limits() const { return {1, 1, std::min(cluster_bytes_, kGrain)}; }

std::uint64_t ClusteredNode::clusters() const { return align_up(size_bytes_) / cluster_bytes_; }

std::uint64_t ClusteredNode::align_up(std::uint64_t offset) const {
    return base::align_up(offset, cluster_bytes_);
}

std::unexpected<Error> ClusteredNode::corrupt(std::string text) const {
    return base::fail(Errc::Corrupt, fmt::format("'{}': {}", name(), text));
}

Task<ClusteredNode::SectorRun> ClusteredNode::find_sectors(std::uint64_t, std::uint64_t,
                                                           std::uint64_t, std::uint64_t) {
    return ready<SectorRun>(cannot("clusters in part"));
}
Task<void> ClusteredNode::unpack(std::uint64_t, std::uint64_t, std::span<std::byte>) {
    return ready<void>(cannot("compression"));
}
Task<ClusteredNode::Space> ClusteredNode::allocate(std::uint64_t, std::uint64_t) {
    return ready<Space>(cannot("writing"));
}
void ClusteredNode::give_back(const Space&) {}
Task<void> ClusteredNode::link(std::uint64_t, ClusterRun) { return ready<void>(cannot("writing")); }
Task<void> ClusteredNode::mark_sectors(std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t) {
    return ready<void>(cannot("clusters in part"));
}

Task<void> ClusteredNode::open_backing(ImageOpener& opener, std::string written,
                                       std::string format) {
    if (written.empty() || !options_.backing)
        co_return {};
    DOPPEL_AWAIT(backing,
                 opener.open_backing(std::move(written), std::move(format), name(), options_));
    backing_ = std::move(backing);
    co_return {};
}

Task<void> ClusteredNode::before_writing() {
    DOPPEL_CO_TRY_VOID(require_whole());
    if (writing_)
        co_return {};
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    if (!writing_)
        DOPPEL_AWAIT_VOID(begin_writing());
    writing_ = true;
    co_return {};
}

Task<void> ClusteredNode::commit() {
    DOPPEL_CO_TRY_VOID(require_whole());
    if (tables_dirty()) {
        if (file_->size() < file_end_)
            DOPPEL_AWAIT_VOID(file_->resize(file_end_));
        DOPPEL_AWAIT_VOID(write_ahead());
        DOPPEL_AWAIT_VOID(file_->flush());
        DOPPEL_AWAIT_VOID(write_tables());
    }
    DOPPEL_AWAIT_VOID(file_->flush());
    co_return {};
}

Task<void> ClusteredNode::flush() {
    if (read_only())
        co_return {};
    if (!tables_dirty()) {
        DOPPEL_AWAIT_VOID(file_->flush());
        co_return {};
    }
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    DOPPEL_AWAIT_VOID(commit());
    co_return {};
}

Task<void> ClusteredNode::close() {
    if (!read_only() && !options_.repair_later && !broken_) {
        auto wait = metadata_.lock();
        auto guard = co_await wait;
        DOPPEL_AWAIT_VOID(commit());
        DOPPEL_AWAIT_VOID(end_writing());
    }
    if (backing_)
        DOPPEL_AWAIT_VOID(backing_->close());
    DOPPEL_AWAIT_VOID(file_->close());
    co_return {};
}

} // namespace doppel::block
