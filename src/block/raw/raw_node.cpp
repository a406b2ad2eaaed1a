// SPDX-License-Identifier: Apache-2.0
#include "block/raw/raw_node.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "block/aligned_memory.hpp"

namespace doppel::block::raw {

namespace {
constexpr std::uint64_t kSectorBytes = 512;
}

Task<void> RawNode::write(std::uint64_t offset, IoBuffer from, Durability durability) {
    if (guard_ && offset < kSectorBytes)
        return write_guarded(offset, from, durability);
    return file_->write(offset, from, durability);
}

Task<void> RawNode::write_guarded(std::uint64_t offset, IoBuffer from, Durability durability) {
    // A private copy: the guest must not change the bytes between the check and the write.
    AlignedMemory copy{from.size()};
    from.copy_to(copy.span());
    AlignedMemory sector{kSectorBytes};
    DOPPEL_AWAIT_VOID(file_->read(0, IoBuffer{sector.span()}));
    const auto fresh = std::min<std::uint64_t>(from.size(), kSectorBytes - offset);
    std::copy_n(copy.data(), fresh, sector.data() + offset);
    if (guard_(sector.span()))
        co_return base::fail(
            Errc::PermissionDenied,
            fmt::format("'{}' was taken for raw because nothing better was found, and this write "
                        "would make its first sector look like another format",
                        name()),
            "Name the format (raw) when you open it.");
    DOPPEL_AWAIT_VOID(file_->write(offset, IoBuffer{copy.span()}, durability));
    co_return {};
}

} // namespace doppel::block::raw
