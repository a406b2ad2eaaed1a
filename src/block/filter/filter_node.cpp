// SPDX-License-Identifier: Apache-2.0
#include "block/filter/filter_node.hpp"

namespace doppel::block::filter {

Task<Extent> FilterNode::status(std::uint64_t offset, std::uint64_t length) {
    DOPPEL_AWAIT(extent, below_->status(offset, length));
    extent.host.reset();
    extent.place = nullptr;
    if (extent.content == Content::Compressed) // nobody decompresses it past us
        extent.content = Content::Data;
    co_return extent;
}

} // namespace doppel::block::filter
