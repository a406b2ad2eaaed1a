// SPDX-License-Identifier: Apache-2.0
#include "block/nbd/client_node.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "block/nbd/connecting.hpp"

namespace doppel::block::nbd {

namespace {

constexpr std::size_t kConnections = 4;
constexpr std::uint64_t kZeroesAtOnce = 1u << 30;
constexpr std::uint64_t kStatusAtOnce = 1u << 31;
constexpr std::uint64_t kZeroChunk = 1u << 20;

} // namespace

Task<std::unique_ptr<ClientNode>> ClientNode::open(IoContext& context, std::string url,
                                                   Access access) {
    DOPPEL_CO_TRY(where, parse_url(url));
    DOPPEL_AWAIT(socket, connect_to(context, where));
    DOPPEL_AWAIT(node, adopt(context, std::move(socket), where, access));
    if (node->has(transmission::CAN_MULTI_CONN))
        DOPPEL_AWAIT_VOID(node->connect_more());
    co_return node;
}

Task<std::unique_ptr<ClientNode>> ClientNode::adopt(IoContext& context, base::UniqueFd socket,
                                                    Url url, Access access) {
    std::unique_ptr<ClientNode> node{new ClientNode{context, std::move(url), access}};
    if (node->url_.tls) {
        TlsOptions options;
        options.x509_folder = node->url_.tls_certificates;
        options.psk_file = node->url_.tls_psk_file;
        options.user = node->url_.tls_user;
        DOPPEL_CO_TRY(tls, TlsCredentials::load(options));
        node->tls_ = std::move(tls);
    }
    DOPPEL_AWAIT_VOID(node->connect(std::move(socket)));
    if (access == Access::ReadWrite && node->has(transmission::READ_ONLY))
        co_return base::fail(Errc::PermissionDenied,
                             fmt::format("the export '{}' is read only", node->name()));
    co_return node;
}

Task<void> ClientNode::connect(base::UniqueFd socket) {
    auto connection = std::make_unique<Connection>(context_, std::move(socket),
                                                   fmt::format("'{}'", url_.text), url_.patience);
    const auto host = url_.tls_host.empty() ? url_.host : url_.tls_host;
    DOPPEL_AWAIT(facts, connection->negotiate(url_.export_name, tls_.get(), host));
    if (!connections_.empty() && facts.size_bytes != facts_.size_bytes)
        co_return base::fail(Errc::Corrupt,
                             fmt::format("'{}' changes its size between connections", url_.text));
    facts_ = facts;
    connections_.push_back(std::move(connection));
    co_return {};
}

/// A server may limit their number: those that there are will do.
Task<void> ClientNode::connect_more() {
    while (connections_.size() < kConnections) {
        auto connecting = connect_to(context_, url_);
        auto socket = co_await connecting;
        if (!socket)
            break;
        auto task = connect(std::move(*socket));
        const auto result = co_await task;
        if (!result)
            break;
    }
    co_return {};
}

Connection& ClientNode::idlest() {
    return **std::ranges::min_element(connections_, {},
                                      [](const auto& one) { return one->under_way(); });
}

bool ClientNode::aligned(std::uint64_t offset, std::uint64_t length) const {
    return ((offset | length) & (facts_.min_block - 1)) == 0;
}

/// As many requests as the server's limit wants, side by side.
Task<void> ClientNode::in_parts(Request request, std::uint64_t length, IoBuffer buffer) {
    const bool payload = request.command == Command::READ || request.command == Command::WRITE;
    const std::uint64_t most = payload ? facts_.max_block : kZeroesAtOnce;
    std::vector<Task<void>> tasks;
    for (std::uint64_t done = 0; done < length;) {
        const auto part = std::min(most, length - done);
        auto one = request;
        one.offset += done;
        one.length = static_cast<std::uint32_t>(part);
        tasks.push_back(idlest().perform(one, payload ? buffer.slice(done, part) : IoBuffer{}));
        done += part;
    }
    if (tasks.size() == 1)
        return std::move(tasks[0]);
    return all_of(std::move(tasks));
}

Task<void> ClientNode::read(std::uint64_t offset, IoBuffer into) {
    if (aligned(offset, into.size()))
        return in_parts({0, Command::READ, 0, offset, 0}, into.size(), into);
    return [](ClientNode& node, std::uint64_t at, IoBuffer to) -> Task<void> {
        const auto begin = base::align_down(at, node.facts_.min_block);
        const auto end = base::align_up(at + to.size(), node.facts_.min_block);
        AlignedMemory copy{end - begin};
        DOPPEL_AWAIT_VOID(
            node.in_parts({0, Command::READ, 0, begin, 0}, copy.size(), IoBuffer{copy.span()}));
        to.copy_from(copy.span().subspan(at - begin, to.size()));
        co_return {};
    }(*this, offset, into);
}

std::uint16_t ClientNode::fua(Durability durability) const {
    const bool wanted = durability == Durability::Durable && has(transmission::SEND_FUA);
    return wanted ? command_flag::FUA : 0;
}

Task<void> ClientNode::make_durable(Durability durability) {
    if (durability == Durability::Durable && !has(transmission::SEND_FUA))
        return flush();
    return ready<void>({});
}

Task<void> ClientNode::write(std::uint64_t offset, IoBuffer from, Durability durability) {
    known_ = {};
    ++changes_;
    if (!aligned(offset, from.size())) {
        DOPPEL_AWAIT_VOID(change_unaligned(offset, from, durability));
    } else {
        auto wait = unaligned_.lock(offset, offset + from.size(), RangeLock::Mode::Shared);
        auto guard = co_await wait;
        DOPPEL_AWAIT_VOID(write_aligned(offset, from, durability));
    }
    known_ = {};
    co_return {};
}

Task<void> ClientNode::write_aligned(std::uint64_t offset, IoBuffer from, Durability durability) {
    DOPPEL_AWAIT_VOID(in_parts({fua(durability), Command::WRITE, 0, offset, 0}, from.size(), from));
    DOPPEL_AWAIT_VOID(make_durable(durability));
    co_return {};
}

Task<void> ClientNode::change_unaligned(std::uint64_t offset, IoBuffer from,
                                        Durability durability) {
    const auto begin = base::align_down(offset, facts_.min_block);
    const auto end = base::align_up(offset + from.size(), facts_.min_block);
    auto wait = unaligned_.lock(begin, end, RangeLock::Mode::Exclusive);
    auto guard = co_await wait;
    AlignedMemory copy{end - begin};
    DOPPEL_AWAIT_VOID(
        in_parts({0, Command::READ, 0, begin, 0}, copy.size(), IoBuffer{copy.span()}));
    from.copy_to(copy.span().subspan(offset - begin, from.size()));
    DOPPEL_AWAIT_VOID(write_aligned(begin, IoBuffer{copy.span()}, durability));
    co_return {};
}

Task<void> ClientNode::write_zero_bytes(std::uint64_t offset, std::uint64_t length,
                                        Durability durability) {
    AlignedMemory zeroes{std::min(length, kZeroChunk)};
    for (std::uint64_t done = 0; done < length;) {
        const auto part = std::min<std::uint64_t>(length - done, zeroes.size());
        DOPPEL_AWAIT_VOID(
            write(offset + done, IoBuffer{zeroes.span().first(part)}, Durability::Cached));
        done += part;
    }
    if (durability == Durability::Durable)
        DOPPEL_AWAIT_VOID(flush());
    co_return {};
}

Task<void> ClientNode::write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                                    Durability durability) {
    if (!has(transmission::SEND_WRITE_ZEROES) || !aligned(offset, length)) {
        DOPPEL_AWAIT_VOID(write_zero_bytes(offset, length, durability));
        co_return {};
    }
    known_ = {};
    ++changes_;
    auto flags = fua(durability);
    if (unmap == Unmap::Keep)
        flags |= command_flag::NO_HOLE;
    DOPPEL_AWAIT_VOID(in_parts({flags, Command::WRITE_ZEROES, 0, offset, 0}, length, {}));
    DOPPEL_AWAIT_VOID(make_durable(durability));
    known_ = {};
    co_return {};
}

Task<void> ClientNode::discard(std::uint64_t offset, std::uint64_t length) {
    const auto begin = base::align_up(offset, facts_.min_block);
    const auto end = base::align_down(offset + length, facts_.min_block);
    if (!has(transmission::SEND_TRIM) || end <= begin)
        co_return {};
    known_ = {};
    ++changes_;
    DOPPEL_AWAIT_VOID(in_parts({0, Command::TRIM, 0, begin, 0}, end - begin, {}));
    known_ = {};
    co_return {};
}

Task<void> ClientNode::flush() {
    if (!has(transmission::SEND_FLUSH) || read_only())
        return ready<void>({});
    if (has(transmission::CAN_MULTI_CONN) || connections_.size() == 1)
        return idlest().perform({0, Command::FLUSH, 0, 0, 0}, {});
    std::vector<Task<void>> tasks;
    for (const auto& one : connections_)
        tasks.push_back(one->perform({0, Command::FLUSH, 0, 0, 0}, {}));
    return all_of(std::move(tasks));
}

/// Asks for the extents from `offset` on.
Task<void> ClientNode::load_status(std::uint64_t offset) {
    const auto begin = base::align_down(offset, facts_.min_block);
    const auto length =
        std::min(kStatusAtOnce, base::align_down(facts_.size_bytes - begin, facts_.min_block));
    known_ = {};
    if (!facts_.allocation || length == 0) {
        known_ = {begin, {{facts_.size_bytes - begin, 0}}};
        co_return {};
    }
    const auto changes = changes_;
    DOPPEL_AWAIT(extents, idlest().block_status(begin, static_cast<std::uint32_t>(length)));
    if (extents[0].length <= offset - begin) // of less than a block: call the block data
        extents[0] = {offset - begin + 1, 0};
    if (changes == changes_)
        known_ = {begin, std::move(extents)};
    else
        known_ = {begin, {{extents[0].length, 0}}}; // it may be old already: data is always true
    co_return {};
}

Task<Extent> ClientNode::status(std::uint64_t offset, std::uint64_t length) {
    for (int tries = 0; tries < 2; ++tries) {
        auto at = known_.begin;
        for (const auto& one : known_.extents) {
            if (offset >= at && offset - at < one.length) {
                Extent extent;
                extent.length = std::min(length, one.length - (offset - at));
                extent.content = (one.flags & state::ZERO) != 0 ? Content::Zero : Content::Data;
                extent.host = offset;
                extent.place = this;
                co_return extent;
            }
            at += one.length;
        }
        DOPPEL_AWAIT_VOID(load_status(offset));
    }
    Extent extent; // somebody else's changes got in between: data is always true
    extent.length = length;
    co_return extent;
}

Task<void> ClientNode::resize(std::uint64_t size_bytes) {
    if (size_bytes <= facts_.size_bytes)
        return ready<void>({});
    return ready<void>(
        base::fail(Errc::NoSpace, fmt::format("the export '{}' has {} bytes, {} are needed", name(),
                                              facts_.size_bytes, size_bytes)));
}

Task<void> ClientNode::close() {
    Result<void> durable;
    if (changes_ != 0) {
        auto flushing = flush();
        durable = co_await flushing;
    }
    for (const auto& one : connections_)
        DOPPEL_AWAIT_VOID(one->close());
    co_return durable;
}

} // namespace doppel::block::nbd
