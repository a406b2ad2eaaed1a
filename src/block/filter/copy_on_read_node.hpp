// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What is read from behind an image is kept in it, so that it is near the next time. Owner thread
/// only.
#include "block/async_lock.hpp"
#include "block/filter/filter_node.hpp"

namespace doppel::block::filter {

class CopyOnReadNode final : public FilterNode {
public:
    /// Error: the image cannot be written.
    static Result<std::unique_ptr<ImageNode>> create(IoContext& context,
                                                     std::unique_ptr<ImageNode> below);

    std::string driver() const override { return "copy-on-read"; }
    Task<void> read(std::uint64_t offset, IoBuffer into) override;
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override;
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override;
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override;

private:
    CopyOnReadNode(IoContext& context, std::unique_ptr<ImageNode> below)
        : FilterNode{std::move(below)}, ranges_{context} {}
    Task<void> fetch(std::uint64_t begin, std::uint64_t end);
    Task<bool> all_here(std::uint64_t begin, std::uint64_t end);

    RangeLock ranges_; // what is being fetched is not written by others
};

} // namespace doppel::block::filter
