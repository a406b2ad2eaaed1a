// SPDX-License-Identifier: Apache-2.0
#include "block/memory/memory_node.hpp"

#include <algorithm>

#include <fmt/core.h>

namespace doppel::block {

Task<void> MemoryNode::read(std::uint64_t offset, IoBuffer into) {
    const auto known = offset < size() ? std::min<std::uint64_t>(into.size(), size() - offset) : 0;
    if (known > 0)
        into.slice(0, known).copy_from({bytes_.data() + offset, known});
    into.slice(known, into.size() - known).fill(std::byte{0});
    return ready<void>({});
}

Task<void> MemoryNode::write(std::uint64_t offset, IoBuffer from, Durability) {
    if (offset + from.size() > size())
        DOPPEL_AWAIT_VOID(resize(offset + from.size()));
    from.copy_to({bytes_.data() + offset, from.size()});
    co_return {};
}

Task<void> MemoryNode::write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap, Durability) {
    if (offset + length > size())
        DOPPEL_AWAIT_VOID(resize(offset + length));
    std::fill_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset), length, std::byte{0});
    co_return {};
}

Task<void> MemoryNode::discard(std::uint64_t offset, std::uint64_t length) {
    const auto end = std::min(size(), offset + length);
    if (offset < end)
        std::fill_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset), end - offset,
                    std::byte{0});
    return ready<void>({});
}

Task<Extent> MemoryNode::status(std::uint64_t offset, std::uint64_t length) {
    Extent extent;
    extent.length = length;
    extent.host = offset;
    extent.place = this;
    return ready<Extent>(extent);
}

Task<void> MemoryNode::resize(std::uint64_t size_bytes) {
    if (size_bytes > limit_)
        return ready<void>(base::fail(
            Errc::NoSpace, fmt::format("{} bytes pass the limit of {}", size_bytes, limit_)));
    bytes_.resize(size_bytes);
    return ready<void>({});
}

} // namespace doppel::block
