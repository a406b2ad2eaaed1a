// SPDX-License-Identifier: Apache-2.0
/// The server's side of transmission.
#include "block/nbd/session.hpp"

#include <algorithm>

#include <fmt/core.h>

namespace doppel::block::nbd {

namespace {

constexpr std::size_t kMaxRequests = 256;    // of one client under way
constexpr std::size_t kMaxBytes = 8u << 20;  // of their payloads: they stay in the host's cache
constexpr std::size_t kMaxQueued = 2u << 20; // of answers that wait for the client: likewise
constexpr std::uint32_t kMaxSkipped = 128u << 20; // payload of a WRITE that is refused

WireError wire_error(const Error& error) {
    switch (error.code) {
    case Errc::PermissionDenied: return WireError::EPERM_;
    case Errc::NoSpace: return WireError::ENOSPC_;
    case Errc::OutOfMemory: return WireError::ENOMEM_;
    case Errc::InvalidArgument:
    case Errc::OutOfRange: return WireError::EINVAL_;
    case Errc::Unsupported: return WireError::ENOTSUP_;
    default: return WireError::EIO_;
    }
}

/// What the client may know: no names of files here.
std::string_view explain(WireError error) {
    switch (error) {
    case WireError::EPERM_: return "not permitted";
    case WireError::ENOSPC_: return "no space is left, or past the end";
    case WireError::ENOMEM_: return "out of memory";
    case WireError::EINVAL_: return "the request makes no sense";
    case WireError::EOVERFLOW_: return "the request is too long";
    case WireError::ENOTSUP_: return "not supported";
    default: return "input/output error";
    }
}

bool writes(Command command) {
    return command == Command::WRITE || command == Command::TRIM ||
           command == Command::WRITE_ZEROES;
}

std::size_t memory_of(const Request& request) {
    return request.command == Command::READ || request.command == Command::WRITE ? request.length
                                                                                 : 0;
}

void put_chunk_head(std::byte* to, ReplyType type, std::uint16_t flags, std::uint64_t cookie,
                    std::size_t bytes) {
    base::store_be(to, STRUCTURED_REPLY_MAGIC);
    base::store_be(to + 4, flags);
    base::store_be(to + 6, static_cast<std::uint16_t>(type));
    base::store_be(to + 8, cookie);
    base::store_be(to + 16, static_cast<std::uint32_t>(bytes));
}
constexpr std::size_t kChunkHead = 20;

std::uint32_t allocation_of(const Extent& extent) {
    return extent.content == Content::Zero ? state::HOLE | state::ZERO : 0;
}

/// qemu:allocation-depth: 0 nothing, 1 here, more: in a backing file.
std::uint32_t depth_of(const Extent& extent) { return extent.present ? extent.depth + 1 : 0; }

/// Neighbours of one state together.
class ExtentList {
public:
    void add(std::uint64_t length, std::uint32_t flags) {
        if (!list_.empty() && list_.back().second == flags)
            list_.back().first += length;
        else
            list_.emplace_back(length, flags);
    }
    std::size_t size() const noexcept { return list_.size(); }
    std::vector<std::byte> bytes(std::uint32_t context, std::size_t limit) const {
        Writer writer;
        writer.put(context);
        for (std::size_t i = 0; i < std::min(limit, list_.size()); ++i)
            writer.put(static_cast<std::uint32_t>(list_[i].first)).put(list_[i].second);
        return writer.take();
    }

private:
    std::vector<std::pair<std::uint64_t, std::uint32_t>> list_;
};

} // namespace

bool Session::WaitForRoom::await_ready() const noexcept {
    session->room_for_ = requests;
    return session->requests_ <= requests && session->bytes_ <= kMaxBytes;
}

Task<void> Session::run() {
    auto negotiating = negotiate_in_time();
    auto outcome = co_await negotiating;
    Result<void> ending;
    if (outcome && *outcome) {
        auto transmitting = transmit();
        ending = co_await transmitting;
    } else if (!outcome) {
        ending = std::unexpected(std::move(outcome).error());
    }
    while (requests_ > 0) {
        const WaitForRoom wait{this, 0};
        co_await wait;
    }
    if (ending)
        DOPPEL_AWAIT_VOID(stream_.sent_below(1));
    if (!ending &&
        (ending.error().code == Errc::NotFound || ending.error().code == Errc::Interrupted))
        ending = {}; // it went without a word, or we end
    co_return ending;
}

Task<void> Session::transmit() {
    std::array<std::byte, Request::kBytes> head{};
    while (true) {
        if (!stream_.take(head))
            DOPPEL_AWAIT_VOID(stream_.read(head));
        Request request;
        if (!request.parse(head.data()))
            co_return base::fail(Errc::Corrupt, "a request without its magic number");
        if (request.command == Command::DISC)
            co_return {};
        DOPPEL_AWAIT(go_on, accept(request));
        if (!go_on)
            co_return {};
    }
}

WireError Session::validate(const Request& request) const {
    using namespace command_flag;
    const auto size = export_->node->size();
    constexpr std::uint16_t kKnown = FUA | NO_HOLE | DF | REQ_ONE;
    if ((request.flags & ~kKnown) != 0)
        return WireError::EINVAL_;
    if (writes(request.command) && export_->read_only)
        return WireError::EPERM_;
    switch (request.command) {
    case Command::FLUSH:
        return request.offset == 0 && request.length == 0 ? WireError::None : WireError::EINVAL_;
    case Command::BLOCK_STATUS:
        if (!structured_ || contexts_.empty() || request.length == 0)
            return WireError::EINVAL_;
        break;
    case Command::READ:
    case Command::WRITE:
        if (request.length > kMaxPayload)
            return WireError::EOVERFLOW_;
        break;
    case Command::TRIM:
    case Command::WRITE_ZEROES: break;
    default: return WireError::EINVAL_;
    }
    if (request.offset > size || request.length > size - request.offset)
        return writes(request.command) ? WireError::ENOSPC_ : WireError::EINVAL_;
    return WireError::None;
}

/// Yields whether the connection is still in step.
Task<bool> Session::accept(Request request) {
    const WaitForRoom wait{this, kMaxRequests};
    co_await wait;
    DOPPEL_AWAIT_VOID(stream_.sent_below(kMaxQueued));
    const auto error = validate(request);
    AlignedMemory payload;
    if (request.command == Command::WRITE) {
        if (error == WireError::None) {
            payload = AlignedMemory::uninitialized(request.length);
            DOPPEL_AWAIT_VOID(stream_.read(payload.span()));
        } else if (request.length <= kMaxSkipped) {
            DOPPEL_AWAIT_VOID(stream_.skip(request.length));
        } else {
            co_return base::fail(Errc::Corrupt,
                                 fmt::format("a write of {} bytes at once", request.length));
        }
    }
    if (error != WireError::None) {
        answer_error(request, error);
        co_return true;
    }
    ++requests_;
    bytes_ += memory_of(request);
    perform(request, std::move(payload));
    co_return true;
}

Detached Session::perform(Request request, AlignedMemory payload) {
    if (request.command == Command::BLOCK_STATUS) {
        std::vector<std::byte> chunks;
        auto task = status(request, chunks);
        const auto result = co_await task;
        if (result)
            stream_.send(std::move(chunks));
        else
            answer_error(request, wire_error(result.error()));
        finished(request);
        co_return;
    }
    auto task = carry_out(request, payload);
    const auto result = co_await task;
    if (result) {
        answer(request, request.command == Command::READ ? std::move(payload) : AlignedMemory{});
    } else {
        if (server_.options().warn)
            server_.options().warn(result.error().message());
        answer_error(request, wire_error(result.error()));
    }
    finished(request);
}

Task<void> Session::carry_out(const Request& request, AlignedMemory& payload) {
    auto& node = *export_->node;
    const auto durability =
        (request.flags & command_flag::FUA) != 0 ? Durability::Durable : Durability::Cached;
    const auto unmap = (request.flags & command_flag::NO_HOLE) != 0 ? Unmap::Keep : Unmap::Allow;
    if (request.command != Command::FLUSH && request.length == 0)
        return ready<void>({});
    switch (request.command) {
    case Command::READ:
        payload = AlignedMemory::uninitialized(request.length);
        return node.read(request.offset, IoBuffer{payload.span()});
    case Command::WRITE: return node.write(request.offset, IoBuffer{payload.span()}, durability);
    case Command::TRIM: return node.discard(request.offset, request.length);
    case Command::WRITE_ZEROES:
        return node.write_zeroes(request.offset, request.length, unmap, durability);
    default: return node.flush();
    }
}

/// One chunk per context; the last says that it is the last.
Task<void> Session::status(const Request& request, std::vector<std::byte>& chunks) {
    for (const auto& context : contexts_) {
        std::vector<std::byte> data;
        if (context.kind == Context::Kind::Bitmap) {
            DOPPEL_CO_TRY(bits, bitmap_extents(request, context));
            data = std::move(bits);
        } else {
            DOPPEL_AWAIT(found, extents(request, context));
            data = std::move(found);
        }
        const bool last = &context == &contexts_.back();
        std::array<std::byte, kChunkHead> head{};
        put_chunk_head(head.data(), ReplyType::BLOCK_STATUS, last ? REPLY_FLAG_DONE : 0,
                       request.cookie, data.size());
        chunks.insert(chunks.end(), head.begin(), head.end());
        chunks.insert(chunks.end(), data.begin(), data.end());
    }
    co_return {};
}

Task<std::vector<std::byte>> Session::extents(const Request& request, const Context& context) {
    const bool one = (request.flags & command_flag::REQ_ONE) != 0;
    ExtentList list;
    for (std::uint64_t done = 0; done < request.length;) {
        DOPPEL_AWAIT(extent, export_->node->status(request.offset + done, request.length - done));
        list.add(extent.length,
                 context.kind == Context::Kind::Depth ? depth_of(extent) : allocation_of(extent));
        done += extent.length;
        if (list.size() > (one ? 1 : kMaxExtents))
            break;
    }
    co_return list.bytes(context.id, one ? 1 : kMaxExtents);
}

Result<std::vector<std::byte>> Session::bitmap_extents(const Request& request,
                                                       const Context& context) const {
    auto* bitmaps = export_->node->bitmaps();
    if (bitmaps == nullptr)
        return base::fail(Errc::NotFound, fmt::format("no bitmap '{}'", context.bitmap));
    const auto ranges = DOPPEL_TRY(bitmaps->marked(context.bitmap));
    const bool one = (request.flags & command_flag::REQ_ONE) != 0;
    const auto end = request.offset + request.length;
    ExtentList list;
    auto at = request.offset;
    for (const auto& [begin, behind] : ranges) {
        if (behind <= at || begin >= end)
            continue;
        if (begin > at)
            list.add(begin - at, 0);
        list.add(std::min(behind, end) - std::max(begin, at), 1);
        at = std::min(behind, end);
        if (list.size() > kMaxExtents)
            break;
    }
    if (at < end)
        list.add(end - at, 0);
    return list.bytes(context.id, one ? 1 : kMaxExtents);
}

void Session::answer(const Request& request, AlignedMemory payload) {
    Message message;
    auto* head = message.head.data();
    if (!structured_ || request.command != Command::READ) {
        if (structured_ && request.command == Command::BLOCK_STATUS)
            return;
        base::store_be(head, SIMPLE_REPLY_MAGIC);
        base::store_be(head + 4, std::uint32_t{0});
        base::store_be(head + 8, request.cookie);
        message.head_bytes = 16;
    } else if (payload.size() == 0) {
        put_chunk_head(head, ReplyType::NONE, REPLY_FLAG_DONE, request.cookie, 0);
        message.head_bytes = kChunkHead;
    } else {
        put_chunk_head(head, ReplyType::OFFSET_DATA, REPLY_FLAG_DONE, request.cookie,
                       payload.size() + sizeof request.offset);
        base::store_be(head + kChunkHead, request.offset);
        message.head_bytes = kChunkHead + sizeof request.offset;
    }
    message.payload = std::move(payload);
    stream_.send(std::move(message));
}

void Session::answer_error(const Request& request, WireError error) {
    Message message;
    auto* head = message.head.data();
    const auto number = static_cast<std::uint32_t>(error);
    if (!structured_) {
        base::store_be(head, SIMPLE_REPLY_MAGIC);
        base::store_be(head + 4, number);
        base::store_be(head + 8, request.cookie);
        message.head_bytes = 16;
        stream_.send(std::move(message));
        return;
    }
    const auto text = explain(error);
    auto chunk = Writer{}
                     .zeroes(kChunkHead)
                     .put(number)
                     .put(static_cast<std::uint16_t>(text.size()))
                     .text(text)
                     .take();
    put_chunk_head(chunk.data(), ReplyType::ERROR, REPLY_FLAG_DONE, request.cookie,
                   chunk.size() - kChunkHead);
    stream_.send(std::move(chunk));
}

void Session::finished(const Request& request) {
    --requests_;
    bytes_ -= memory_of(request);
    if (waiter_ && requests_ <= room_for_ && bytes_ <= kMaxBytes)
        server_.context().resume_later(std::exchange(waiter_, {}));
}

} // namespace doppel::block::nbd
