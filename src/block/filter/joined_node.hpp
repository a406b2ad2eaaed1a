// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Several disks one behind the other, each from a sector's boundary on, as one to read. Owner
/// thread only.
#include <memory>
#include <vector>

#include "block/node.hpp"

namespace doppel::block::filter {

class JoinedNode final : public Node {
public:
    explicit JoinedNode(std::vector<std::unique_ptr<Node>> parts);

    std::string driver() const override { return "joined"; }
    std::string name() const override;
    std::uint64_t size() const override { return size_; }
    Limits limits() const override;
    bool read_only() const override { return true; }

    Task<void> read(std::uint64_t offset, IoBuffer into) override;
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override;
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override;
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override;
    Task<void> flush() override { return ready<void>({}); }
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override;
    Task<void> resize(std::uint64_t size_bytes) override;
    std::optional<std::uint64_t> allocated_bytes() const override;

private:
    struct Part {
        std::uint64_t begin = 0; // here
        std::unique_ptr<Node> node;
        std::uint64_t end() const { return begin + node->size(); }
    };
    /// A range within one part, or (no part) behind the end of one, where zeroes fill the sector.
    struct Place {
        Node* node = nullptr;
        std::uint64_t offset = 0; // in the part
        std::uint64_t length = 0;
    };
    Place find(std::uint64_t offset, std::uint64_t length) const;

    std::vector<Part> parts_;
    std::uint64_t size_ = 0;
};

} // namespace doppel::block::filter
