// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A protocol node whose bytes are in memory: for tests, fuzzing and scratch images. Grows by
/// writes like a file, up to `limit`. Owner thread only.
#include <vector>

#include "block/node.hpp"

namespace doppel::block {

class MemoryNode final : public Node {
public:
    static constexpr std::uint64_t kNoLimit = std::uint64_t{1} << 40;
    explicit MemoryNode(std::vector<std::byte> bytes = {}, std::uint64_t limit = kNoLimit)
        : bytes_{std::move(bytes)}, limit_{limit} {}

    std::string driver() const override { return "memory"; }
    std::string name() const override { return "memory"; }
    std::uint64_t size() const override { return bytes_.size(); }
    bool read_only() const override { return false; }
    const std::vector<std::byte>& bytes() const noexcept { return bytes_; }

    Task<void> read(std::uint64_t offset, IoBuffer into) override;
    /// Error NoSpace past the limit.
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override;
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override;
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override;
    Task<void> flush() override { return ready<void>({}); }
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override;
    Task<void> resize(std::uint64_t size_bytes) override;

private:
    std::vector<std::byte> bytes_;
    std::uint64_t limit_;
};

} // namespace doppel::block
