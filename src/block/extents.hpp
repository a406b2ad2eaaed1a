// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What a range holds, asked as deep as it goes. Owner thread only.
#include "block/node.hpp"

namespace doppel::block {

/// As node.status(), but data whose place is a hole of the file below is called zero: an image
/// whose clusters are only reserved, or were trimmed by the host. For copies and comparisons; a map
/// shows what status() says.
inline Task<Extent> deep_status(Node& node, std::uint64_t offset, std::uint64_t length) {
    DOPPEL_AWAIT(extent, node.status(offset, length));
    if (extent.content != Content::Data || !extent.host || extent.place == nullptr)
        co_return extent;
    DOPPEL_AWAIT(below, extent.place->status(*extent.host, extent.length));
    extent.length = below.length;
    extent.content = below.content;
    co_return extent;
}

} // namespace doppel::block
