// SPDX-License-Identifier: Apache-2.0
#pragma once
/// An export of an NBD server as a protocol node. Its size is fixed. Owner thread only.
#include <memory>
#include <string>
#include <vector>

#include "block/async_lock.hpp"
#include "block/format.hpp"
#include "block/nbd/connection.hpp"
#include "block/nbd/url.hpp"

namespace doppel::block::nbd {

class ClientNode final : public Node {
public:
    /// Connects, several times where the server says that this is good. Errors: nobody listens
    /// there; what negotiation says; `access` is ReadWrite and the export read only.
    static Task<std::unique_ptr<ClientNode>> open(IoContext& context, std::string url,
                                                  Access access);
    /// Over a socket that is connected already.
    static Task<std::unique_ptr<ClientNode>> adopt(IoContext& context, base::UniqueFd socket,
                                                   Url url, Access access);

    std::string driver() const override { return "nbd"; }
    std::string name() const override { return url_.text; }
    std::uint64_t size() const override { return facts_.size_bytes; }
    Limits limits() const override { return {facts_.min_block, 1, 0}; }
    bool read_only() const override { return access_ == Access::ReadOnly; }
    bool fixed_size() const override { return true; }

    Task<void> read(std::uint64_t offset, IoBuffer into) override;
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override;
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override;
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override;
    Task<void> flush() override;
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override;
    Task<void> resize(std::uint64_t size_bytes) override;
    Task<void> close() override;

    const ExportFacts& facts() const noexcept { return facts_; }

private:
    ClientNode(IoContext& context, Url url, Access access)
        : context_{context}, url_{std::move(url)}, access_{access}, unaligned_{context} {}
    Task<void> connect(base::UniqueFd socket);
    Task<void> connect_more();
    bool has(std::uint16_t flag) const { return (facts_.flags & flag) != 0; }
    Connection& idlest();
    Task<void> in_parts(Request request, std::uint64_t length, IoBuffer buffer);
    Task<void> write_aligned(std::uint64_t offset, IoBuffer from, Durability durability);
    Task<void> write_zero_bytes(std::uint64_t offset, std::uint64_t length, Durability durability);
    Task<void> change_unaligned(std::uint64_t offset, IoBuffer from, Durability durability);
    Task<void> load_status(std::uint64_t offset);
    std::uint16_t fua(Durability durability) const;
    Task<void> make_durable(Durability durability);
    bool aligned(std::uint64_t offset, std::uint64_t length) const;

    IoContext& context_;
    Url url_;
    Access access_;
    ExportFacts facts_;
    std::unique_ptr<TlsCredentials> tls_;
    std::vector<std::unique_ptr<Connection>> connections_;
    RangeLock unaligned_;
    // What the last BLOCK_STATUS told; every change forgets it.
    struct Known {
        std::uint64_t begin = 0;
        std::vector<StatusExtent> extents;
    } known_;
    std::uint64_t changes_ = 0;
};

} // namespace doppel::block::nbd
