// SPDX-License-Identifier: Apache-2.0
#include "block/vpc/fixed_node.hpp"

#include <fmt/core.h>

#include "block/all_or_nothing.hpp"

namespace doppel::block::vpc {

ImageInfo FixedNode::info() const {
    ImageInfo info;
    info.facts.emplace_back("image-type", std::string{"fixed"});
    info.facts.emplace_back("uuid", uuid_text(footer_.uuid));
    return info;
}

/// There is a footer at the file's end at any moment: the new one before the old one goes.
Task<void> FixedNode::resize(std::uint64_t size_bytes) {
    const auto old_size = size();
    if (size_bytes % kSector != 0 || size_bytes > kMaxDiskBytes)
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("the size {} is not a multiple of 512 bytes up to "
                                         "2040 GiB",
                                         size_bytes));
    DOPPEL_CO_TRY_VOID(require_whole());
    if (size_bytes == old_size)
        co_return {};
    AllOrNothing operation{broken_};
    auto changed = footer_;
    set_footer(changed, Type::Fixed, ~std::uint64_t{0}, size_bytes);
    DOPPEL_AWAIT_VOID(file_->write(size_bytes, IoBuffer::of(changed.bytes), Durability::Durable));
    if (size_bytes > old_size)
        DOPPEL_AWAIT_VOID(file_->write_zeroes(
            old_size, std::min<std::uint64_t>(kFooterBytes, size_bytes - old_size), Unmap::Keep,
            Durability::Durable));
    footer_ = std::move(changed);
    DOPPEL_AWAIT_VOID(file_->resize(size_bytes + kFooterBytes));
    operation.done();
    co_return {};
}

} // namespace doppel::block::vpc
