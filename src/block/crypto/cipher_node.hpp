// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What a protocol node holds, through a sector cipher: data in the clear above, encrypted below.
/// The tweak is the sector's number behind `begin`. The size is that of the node below, less what
/// lies in front. Owner thread only.
#include "block/async_lock.hpp"
#include "block/crypto/sector_cipher.hpp"
#include "block/node.hpp"

namespace doppel::block::crypto {

class CipherNode final : public Node {
public:
    /// `below` outlives this.
    CipherNode(IoContext& context, Node& below, std::uint64_t begin,
               std::unique_ptr<SectorCipher> cipher)
        : context_{context}, below_{below}, begin_{begin}, cipher_{std::move(cipher)},
          sectors_{context} {}

    std::string driver() const override { return "cipher"; }
    std::string name() const override { return below_.name(); }
    std::uint64_t size() const override { return below_.size() - std::min(below_.size(), begin_); }
    Limits limits() const override { return {kSectorBytes, 1, 0}; }
    bool read_only() const override { return below_.read_only(); }
    bool fixed_size() const override { return true; } // what nobody wrote is noise

    Task<void> read(std::uint64_t offset, IoBuffer into) override;
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override;
    /// Encrypted zeroes are written: a hole would read as noise.
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override;
    Task<void> discard(std::uint64_t, std::uint64_t) override { return ready<void>({}); }
    Task<void> flush() override { return below_.flush(); }
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override;
    Task<void> resize(std::uint64_t size_bytes) override {
        return below_.resize(begin_ + size_bytes);
    }

private:
    Task<void> read_part(std::uint64_t offset, IoBuffer into);
    Task<void> write_part(std::uint64_t offset, IoBuffer from);
    Task<void> read_sectors(std::uint64_t offset, std::span<std::byte> bytes);
    Task<void> apply(std::function<void()> work, std::size_t bytes);

    IoContext& context_;
    Node& below_;
    std::uint64_t begin_;
    std::unique_ptr<SectorCipher> cipher_;
    RangeLock sectors_; // a part of a sector is changed alone
};

} // namespace doppel::block::crypto
