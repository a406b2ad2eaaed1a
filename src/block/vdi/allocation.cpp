// SPDX-License-Identifier: Apache-2.0
/// Which blocks of the file are in use. The metadata lock is held.
#include <algorithm>

#include <fmt/core.h>

#include "block/vdi/vdi_node.hpp"

namespace doppel::block::vdi {

/// Blocks that the file has, the last one perhaps in part.
std::uint64_t VdiNode::file_blocks() const {
    const auto bytes = file_->size() - std::min(file_->size(), header_.data_offset);
    return (bytes + header_.stride() - 1) / header_.stride();
}

Task<void> VdiNode::use(Owners owners) {
    while (!owners.empty() && owners.back() == kFree)
        owners.pop_back();
    gaps_.clear();
    for (std::uint64_t block = 0; block < owners.size(); ++block)
        if (owners[block] == kFree)
            gaps_.insert(block);
    next_ = owners.size();
    header_dirty_ = header_dirty_ || header_.allocated != next_;
    return ready<void>({});
}

/// As the table on disk, which is the one in memory, has it.
Task<void> VdiNode::find_free() {
    CheckResult result;
    DOPPEL_AWAIT(owners, find_owners(result));
    DOPPEL_AWAIT_VOID(use(std::move(owners)));
    fresh_from_ = file_->driver() == "host_device" ? kMaxBlocks : file_blocks();
    co_return {};
}

/// The header's count is a hint: what counts is the table.
Task<void> VdiNode::begin_writing() {
    CheckResult result;
    DOPPEL_AWAIT(owners, find_owners(result));
    if (result.corruptions != 0)
        co_return base::fail(Errc::Corrupt,
                             fmt::format("'{}' is corrupt and cannot be written: {}", name(),
                                         result.findings.front()),
                             "Look at it with check.");
    DOPPEL_AWAIT_VOID(use(std::move(owners)));
    fresh_from_ = file_->driver() == "host_device" ? kMaxBlocks : file_blocks();
    header_.modified = random_uuid(); // a child that was made before sees that its parent changed
    header_dirty_ = true;
    co_return {};
}

Task<ClusteredNode::Space> VdiNode::allocate(std::uint64_t, std::uint64_t count) {
    if (!gaps_.empty()) {
        const auto block = *gaps_.begin();
        gaps_.erase(gaps_.begin());
        return ready<Space>(Space{header_.host(block), 1, false});
    }
    count = header_.extra_bytes == 0 ? count : 1;
    const auto block = next_;
    const bool fresh = block >= fresh_from_;
    if (!fresh && fresh_from_ != kMaxBlocks)
        count = std::min(count, fresh_from_ - block);
    next_ += count;
    header_dirty_ = true;
    file_end_ = std::max(file_end_, header_.data_offset + next_ * header_.stride());
    return ready<Space>(Space{header_.host(block), count, fresh});
}

void VdiNode::give_back(const Space& space) {
    const auto first = (space.host - header_.data_offset) / header_.stride();
    for (std::uint64_t i = 0; i < space.count; ++i)
        gaps_.insert(first + i);
}

Task<void> VdiNode::link(std::uint64_t index, ClusterRun run) {
    const bool data = run.kind == ClusterKind::Data;
    const auto block = data ? (run.host - header_.data_offset) / header_.stride() : 0;
    for (std::uint64_t i = 0; i < run.count; ++i) {
        const auto value = data                            ? static_cast<std::uint32_t>(block + i)
                           : run.kind == ClusterKind::Zero ? kZero
                                                           : kFree;
        DOPPEL_AWAIT_VOID(set_entry(index + i, value));
    }
    co_return {};
}

Task<void> VdiNode::write_header() {
    std::vector<std::byte> sector(kHeaderBytes);
    DOPPEL_AWAIT_VOID(file_->read(0, IoBuffer{sector}));
    store_header(header_, sector);
    DOPPEL_AWAIT_VOID(file_->write(0, IoBuffer{sector}, Durability::Cached));
    header_dirty_ = false;
    co_return {};
}

Task<void> VdiNode::write_ahead() {
    if (!header_dirty_)
        co_return {};
    header_.allocated = static_cast<std::uint32_t>(next_);
    DOPPEL_AWAIT_VOID(write_header());
    co_return {};
}

Task<void> VdiNode::release_all() {
    gaps_.clear();
    next_ = 0;
    file_end_ = 0;
    header_dirty_ = true;
    if (file_->driver() != "host_device")
        DOPPEL_AWAIT_VOID(file_->resize(header_.data_offset));
    fresh_from_ = file_->driver() == "host_device" ? kMaxBlocks : 0;
    co_return {};
}

} // namespace doppel::block::vdi
