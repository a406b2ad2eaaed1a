// SPDX-License-Identifier: Apache-2.0
/// The client's side of transmission.
#include "block/nbd/connection.hpp"

#include <algorithm>

#include <fmt/core.h>

namespace doppel::block::nbd {

namespace {

constexpr std::size_t kMaxQueued = 64u << 20; // bytes that wait for the server
constexpr std::uint32_t kMaxErrorBytes = 4096 + 6 + 8;
constexpr std::uint32_t kMaxChunk = kMaxPayload + 8;

Error server_error(const std::string& peer, const Request& request, std::uint32_t number) {
    const auto text =
        fmt::format("{}: request {} of {} bytes at {}", peer,
                    static_cast<unsigned>(request.command), request.length, request.offset);
    switch (static_cast<WireError>(number)) {
    case WireError::EPERM_: return {Errc::PermissionDenied, 0, text + ": not permitted", {}, {}};
    case WireError::ENOSPC_: return {Errc::NoSpace, 0, text + ": no space is left", {}, {}};
    case WireError::ENOMEM_: return {Errc::OutOfMemory, 0, text + ": out of memory", {}, {}};
    case WireError::EINVAL_: return {Errc::InvalidArgument, 0, text + ": refused", {}, {}};
    case WireError::EOVERFLOW_: return {Errc::OutOfRange, 0, text + ": too long", {}, {}};
    case WireError::ENOTSUP_: return {Errc::Unsupported, 0, text + ": not supported", {}, {}};
    case WireError::ESHUTDOWN_: return {Errc::Io, 0, text + ": the server goes down", {}, {}};
    default: return {Errc::Io, 0, text + ": input/output error", {}, {}};
    }
}

} // namespace

Connection::Connection(IoContext& context, base::UniqueFd socket, std::string peer,
                       std::chrono::seconds patience)
    : context_{context}, stream_{context, std::move(socket), std::move(peer)}, patience_{patience},
      alarm_{context.loop(), [this] { look(); }} {}

Connection::~Connection() {
    if (!receiver_)
        return;
    if (!receiver_->done())
        stream_.shut(); // the receiver ends inside
}

/// Something is asked of the server: it must say something. One timer covers all requests.
void Connection::watch() {
    if (watching_ || patience_.count() == 0)
        return;
    watching_ = true;
    moved_ = stream_.moved();
    alarm_.set(patience_);
}

void Connection::look() {
    watching_ = false;
    if (!negotiating_ && pending_.empty())
        return;
    if (moved_ != stream_.moved())
        return watch();
    stream_.fail({Errc::Io,
                  0,
                  fmt::format("{} has said nothing for {} s", stream_.peer(), patience_.count()),
                  {},
                  "The URL's parameter timeout=SECONDS says how long to wait; 0: for ever."});
}

Task<void> Connection::submit(Pending& pending) {
    DOPPEL_AWAIT_VOID(stream_.sent_below(kMaxQueued));
    if (dead_)
        co_return std::unexpected(*dead_);
    pending.request.cookie = next_cookie_++;
    Message message;
    pending.request.store(message.head.data());
    message.head_bytes = Request::kBytes;
    if (pending.request.command == Command::WRITE)
        message.borrowed = pending.buffer;
    stream_.send(std::move(message));
    pending.message = stream_.queued();
    pending_[pending.request.cookie] = &pending;
    watch();
    const WaitForAnswer wait{&pending};
    co_await wait;
    co_return pending.outcome;
}

Task<void> Connection::perform(Request request, IoBuffer buffer) {
    Pending pending{request, buffer, 0, {}, {}, {}, false, {}};
    DOPPEL_AWAIT_VOID(submit(pending));
    co_return {};
}

Task<std::vector<StatusExtent>> Connection::block_status(std::uint64_t offset,
                                                         std::uint32_t length) {
    Pending pending{{0, Command::BLOCK_STATUS, 0, offset, length}, {}, 0, {}, {}, {}, false, {}};
    DOPPEL_AWAIT_VOID(submit(pending));
    if (pending.extents.empty())
        co_return broken("an answer to BLOCK_STATUS without extents");
    co_return std::move(pending.extents);
}

Task<void> Connection::close() {
    if (dead_ || !receiver_)
        co_return {};
    Message message;
    Request{0, Command::DISC, 0, 0, 0}.store(message.head.data());
    message.head_bytes = Request::kBytes;
    stream_.send(std::move(message));
    DOPPEL_AWAIT_VOID(stream_.sent_below(1));
    if (!receiver_->done())
        stream_.shut();
    co_return {};
}

void Connection::finish(Pending& pending) {
    pending_.erase(pending.request.cookie);
    pending.done = true;
    if (pending.waiter) // later: it may destroy this connection
        context_.resume_later(std::exchange(pending.waiter, {}));
}

void Connection::fail_all(const Error& error) {
    dead_ = error;
    while (!pending_.empty()) {
        auto& pending = *pending_.begin()->second;
        pending.outcome = std::unexpected(error);
        finish(pending);
    }
}

/// Runs as long as the connection does.
Task<void> Connection::receive_answers() {
    Result<void> outcome;
    while (outcome) {
        std::array<std::byte, 4> magic{};
        auto reading = stream_.read(magic);
        outcome = co_await reading;
        if (!outcome)
            break;
        const auto kind = base::load_be<std::uint32_t>(magic.data());
        if (kind == SIMPLE_REPLY_MAGIC) {
            auto task = simple_answer();
            outcome = co_await task;
        } else if (kind == STRUCTURED_REPLY_MAGIC && facts_.structured) {
            auto task = chunk();
            outcome = co_await task;
        } else {
            outcome = broken(fmt::format("an answer begins with {:#x}", kind));
        }
    }
    auto error = outcome.error();
    if (error.code == Errc::NotFound) // a closed connection, not a missing file
        error.code = Errc::Io;
    fail_all(error);
    co_return {};
}

/// An answer to what was asked, and was sent: nobody must read a buffer that is given back.
Result<Connection::Pending*> Connection::find(std::uint64_t cookie) {
    const auto found = pending_.find(cookie);
    if (found == pending_.end() || found->second->message > stream_.left())
        return broken("it answers what was not asked");
    return found->second;
}

Task<void> Connection::receive_into(IoBuffer buffer) {
    if (auto* memory = buffer.contiguous()) {
        DOPPEL_AWAIT_VOID(stream_.read({memory, buffer.size()}));
        co_return {};
    }
    auto copy = AlignedMemory::uninitialized(buffer.size());
    DOPPEL_AWAIT_VOID(stream_.read(copy.span()));
    buffer.copy_from(copy.span());
    co_return {};
}

Task<void> Connection::simple_answer() {
    std::array<std::byte, 12> rest{};
    DOPPEL_AWAIT_VOID(stream_.read(rest));
    const auto number = base::load_be<std::uint32_t>(rest.data());
    DOPPEL_CO_TRY(pending, find(base::load_be<std::uint64_t>(rest.data() + 4)));
    const auto command = pending->request.command;
    if (facts_.structured && (command == Command::READ || command == Command::BLOCK_STATUS))
        co_return broken("a simple answer where a structured one was agreed on");
    if (number != 0)
        pending->outcome = std::unexpected(server_error(stream_.peer(), pending->request, number));
    else if (command == Command::READ)
        DOPPEL_AWAIT_VOID(receive_into(pending->buffer));
    finish(*pending);
    co_return {};
}

Task<void> Connection::chunk() {
    std::array<std::byte, 16> head{};
    DOPPEL_AWAIT_VOID(stream_.read(head));
    Reader reader{head};
    const auto flags = reader.get<std::uint16_t>();
    const auto type = static_cast<ReplyType>(reader.get<std::uint16_t>());
    DOPPEL_CO_TRY(pending, find(reader.get<std::uint64_t>()));
    const auto length = reader.get<std::uint32_t>();
    const bool last = (flags & REPLY_FLAG_DONE) != 0;
    if (type == ReplyType::OFFSET_DATA)
        DOPPEL_AWAIT_VOID(data_chunk(*pending, length));
    else if (type == ReplyType::OFFSET_HOLE)
        DOPPEL_AWAIT_VOID(hole_chunk(*pending, length));
    else if (type == ReplyType::BLOCK_STATUS)
        DOPPEL_AWAIT_VOID(status_chunk(*pending, length));
    else if ((static_cast<std::uint16_t>(type) & 0x8000) != 0)
        DOPPEL_AWAIT_VOID(error_chunk(*pending, type, length));
    else if (type != ReplyType::NONE || length != 0 || !last)
        co_return broken(
            fmt::format("a chunk of type {} and {} bytes", static_cast<unsigned>(type), length));
    if (!last)
        co_return {};
    std::uint64_t filled = 0;
    for (const auto& [begin, end] : pending->filled)
        filled += end - begin;
    if (pending->request.command == Command::READ && pending->outcome &&
        filled != pending->buffer.size())
        co_return broken("an answer to READ with less data than was asked for");
    finish(*pending);
    co_return {};
}

/// Notes that the server has told this part of a READ: inside of what was asked, and only once.
Result<void> Connection::fill(Pending& pending, std::uint64_t offset, std::uint64_t length) {
    const auto& request = pending.request;
    if (request.command != Command::READ || length == 0 || offset < request.offset ||
        offset - request.offset > request.length ||
        length > request.length - (offset - request.offset))
        return broken("data that was not asked for");
    const auto next = pending.filled.upper_bound(offset);
    const bool before = next != pending.filled.begin() && std::prev(next)->second > offset;
    const bool behind = next != pending.filled.end() && next->first < offset + length;
    if (before || behind)
        return broken("the same data twice");
    pending.filled.emplace(offset, offset + length);
    return {};
}

Task<void> Connection::data_chunk(Pending& pending, std::uint32_t length) {
    if (length <= 8 || length > kMaxChunk)
        co_return broken(fmt::format("a data chunk of {} bytes", length));
    std::array<std::byte, 8> head{};
    DOPPEL_AWAIT_VOID(stream_.read(head));
    const auto offset = base::load_be<std::uint64_t>(head.data());
    DOPPEL_CO_TRY_VOID(fill(pending, offset, length - 8));
    DOPPEL_AWAIT_VOID(
        receive_into(pending.buffer.slice(offset - pending.request.offset, length - 8)));
    co_return {};
}

Task<void> Connection::hole_chunk(Pending& pending, std::uint32_t length) {
    std::array<std::byte, 12> body{};
    if (length != body.size())
        co_return broken(fmt::format("a hole chunk of {} bytes", length));
    DOPPEL_AWAIT_VOID(stream_.read(body));
    const auto offset = base::load_be<std::uint64_t>(body.data());
    const auto bytes = base::load_be<std::uint32_t>(body.data() + 8);
    DOPPEL_CO_TRY_VOID(fill(pending, offset, bytes));
    pending.buffer.slice(offset - pending.request.offset, bytes).fill(std::byte{0});
    co_return {};
}

Task<void> Connection::status_chunk(Pending& pending, std::uint32_t length) {
    const auto& request = pending.request;
    if (request.command != Command::BLOCK_STATUS || length < 12 || length % 8 != 4 ||
        length > kMaxChunk || !pending.extents.empty())
        co_return broken(fmt::format("a status chunk of {} bytes", length));
    std::vector<std::byte> body(length);
    DOPPEL_AWAIT_VOID(stream_.read(body));
    Reader reader{body};
    if (reader.get<std::uint32_t>() != facts_.allocation)
        co_return broken("the status of a context that was not chosen");
    std::uint64_t total = 0;
    while (reader.left() > 0) {
        const auto bytes = reader.get<std::uint32_t>();
        const auto flags = reader.get<std::uint32_t>();
        // Only the last extent may pass the end of what was asked.
        if (bytes == 0 || total >= request.length)
            co_return broken("an extent that is empty, or behind what was asked");
        const auto part = std::min<std::uint64_t>(bytes, request.length - total);
        pending.extents.push_back({part, flags});
        total += bytes;
    }
    co_return {};
}

Task<void> Connection::error_chunk(Pending& pending, ReplyType type, std::uint32_t length) {
    const std::uint32_t least = type == ReplyType::ERROR_OFFSET ? 14 : 6;
    if (length < least || length > kMaxErrorBytes)
        co_return broken(fmt::format("an error chunk of {} bytes", length));
    std::vector<std::byte> body(length);
    DOPPEL_AWAIT_VOID(stream_.read(body));
    const auto number = base::load_be<std::uint32_t>(body.data());
    if (number == 0)
        co_return broken("an error that is none");
    if (pending.outcome)
        pending.outcome = std::unexpected(server_error(stream_.peer(), pending.request, number));
    co_return {};
}

} // namespace doppel::block::nbd
