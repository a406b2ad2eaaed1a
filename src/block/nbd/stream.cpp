// SPDX-License-Identifier: Apache-2.0
#include "block/nbd/stream.hpp"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/core.h>

namespace doppel::block::nbd {

namespace {

constexpr std::size_t kInputBytes = 256u << 10;
constexpr std::size_t kMaxPieces = 256;         // in one system call
constexpr std::size_t kDirectBytes = 16u << 10; // larger reads go past the input buffer

class Plain final : public Transport {
public:
    explicit Plain(int fd) : fd_{fd} {}
    std::int64_t receive(std::span<std::byte> into) override {
        const auto got = ::recv(fd_, into.data(), into.size(), MSG_DONTWAIT);
        return got < 0 ? -errno : got;
    }
    std::int64_t send(std::span<const iovec> pieces) override {
        msghdr message{};
        message.msg_iov = const_cast<iovec*>(pieces.data());
        message.msg_iovlen = pieces.size();
        const auto put = ::sendmsg(fd_, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        return put < 0 ? -errno : put;
    }

private:
    int fd_;
};

std::size_t payload_bytes(const Message& message) {
    return message.payload.size() + message.borrowed.size();
}

} // namespace

std::unique_ptr<Transport> plain_transport(int fd) { return std::make_unique<Plain>(fd); }

Stream::Stream(IoContext& context, base::UniqueFd socket, std::string peer)
    : context_{context}, socket_{std::move(socket)}, peer_{std::move(peer)},
      transport_{plain_transport(socket_.get())}, input_(kInputBytes) {
    poll_number_ = context_.loop().add_poll([this] { return pump(); });
}

Stream::~Stream() {
    context_.loop().remove_poll(poll_number_);
    if (watched_)
        context_.loop().remove(socket_.get());
}

Result<void> Stream::start() {
    const int flags = ::fcntl(socket_.get(), F_GETFL);
    if (flags < 0 || ::fcntl(socket_.get(), F_SETFL, flags | O_NONBLOCK) != 0)
        return base::fail_errno(errno, fmt::format("prepare the connection to {}", peer_));
    // Edge-triggered: whoever meets EAGAIN waits for the next edge, and nobody is asked in between.
    DOPPEL_TRY_VOID(context_.loop().add(socket_.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                        [this](std::uint32_t events) { on_events(events); }));
    watched_ = true;
    return {};
}

void Stream::on_events(std::uint32_t events) {
    if ((events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0)
        writable_ = true;
    const bool readable = (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    readable_ = readable_ || readable;
    if (readable || securing_)
        resume_reader();
}

/// The reader may destroy this stream: nothing may follow.
void Stream::resume_reader() {
    if (reader_)
        std::exchange(reader_, {}).resume();
}

void Stream::end(Error error) {
    if (ended_)
        return;
    ended_ = true;
    why_ = std::move(error);
    ::shutdown(socket_.get(), SHUT_RDWR); // the reader will hear of it from the loop
    for (const auto& one : blocked_)
        context_.resume_later(one.waiter);
    blocked_.clear();
}

void Stream::fail(Error error) {
    end(std::move(error));
    resume_reader();
}

void Stream::shut() {
    fail({Errc::Interrupted, 0, fmt::format("the connection to {} was closed", peer_), {}, {}});
}

Task<std::size_t> Stream::receive(std::span<std::byte> into) {
    while (true) {
        if (ended_)
            co_return std::unexpected(why_);
        const auto got = transport_->receive(into);
        if (got == -EINTR)
            continue;
        if (got >= 0) {
            moved_ += static_cast<std::uint64_t>(got);
            co_return static_cast<std::size_t>(got);
        }
        if (got != -EAGAIN) {
            const auto trouble = transport_->trouble();
            auto text = fmt::format("receive from {}", peer_);
            if (!trouble.empty())
                co_return base::fail(Errc::Io, text + ": " + trouble);
            co_return base::fail_errno(static_cast<int>(-got), text);
        }
        readable_ = false;
        const WaitToRead wait{this};
        co_await wait;
    }
}

bool Stream::take(std::span<std::byte> into) {
    if (into.empty()) // memcpy takes no null pointer, not even for nothing
        return true;
    if (input_end_ - input_begin_ < into.size())
        return false;
    std::memcpy(into.data(), input_.data() + input_begin_, into.size());
    input_begin_ += into.size();
    if (input_begin_ == input_end_)
        input_begin_ = input_end_ = 0;
    return true;
}

Task<void> Stream::read(std::span<std::byte> into) {
    if (take(into))
        co_return {};
    std::size_t done = std::min(input_end_ - input_begin_, into.size());
    std::memcpy(into.data(), input_.data() + input_begin_, done);
    input_begin_ = input_end_ = 0;
    while (done < into.size()) {
        const auto left = into.subspan(done);
        const bool direct = left.size() >= kDirectBytes;
        DOPPEL_AWAIT(got, receive(direct ? left : std::span{input_}));
        if (got == 0)
            co_return base::fail(done == 0 ? Errc::NotFound : Errc::Io,
                                 fmt::format("{} closed the connection", peer_));
        if (direct) {
            done += got;
            continue;
        }
        const auto part = std::min(got, left.size());
        std::memcpy(left.data(), input_.data(), part);
        done += part;
        input_begin_ = part;
        input_end_ = got;
    }
    if (input_begin_ == input_end_)
        input_begin_ = input_end_ = 0;
    co_return {};
}

Task<void> Stream::skip(std::uint64_t bytes) {
    std::vector<std::byte> scratch(std::min<std::uint64_t>(bytes, 64u << 10));
    while (bytes > 0) {
        const auto part = std::min<std::uint64_t>(bytes, scratch.size());
        DOPPEL_AWAIT_VOID(read(std::span{scratch}.first(part)));
        bytes -= part;
    }
    co_return {};
}

void Stream::send(Message message) {
    output_bytes_ += message.head_bytes + payload_bytes(message);
    ++queued_;
    output_.push_back(std::move(message));
}

void Stream::send(std::vector<std::byte> bytes) {
    Message message;
    if (bytes.size() <= message.head.size()) {
        std::ranges::copy(bytes, message.head.begin());
        message.head_bytes = bytes.size();
    } else {
        message.payload = AlignedMemory::uninitialized(bytes.size());
        std::ranges::copy(bytes, message.payload.data());
    }
    send(std::move(message));
}

std::vector<iovec> Stream::pieces_to_send() const {
    std::vector<iovec> pieces;
    pieces.reserve(std::min(kMaxPieces, output_.size() * 2));
    auto skip = output_sent_;
    const auto add = [&](const std::byte* from, std::size_t size) {
        if (skip >= size) {
            skip -= size;
            return;
        }
        pieces.push_back({const_cast<std::byte*>(from) + skip, size - skip});
        skip = 0;
    };
    for (const auto& message : output_) {
        if (pieces.size() + 2 > kMaxPieces)
            break;
        add(message.head.data(), message.head_bytes);
        add(message.payload.data(), message.payload.size());
        for (const auto& piece : message.borrowed.pieces(0, kMaxPieces))
            add(static_cast<const std::byte*>(piece.iov_base), piece.iov_len);
        if (message.borrowed.size() > 0)
            break; // it may have had more pieces than were taken
    }
    return pieces;
}

void Stream::sent(std::size_t bytes) {
    moved_ += bytes;
    output_bytes_ -= bytes;
    output_sent_ += bytes;
    while (!output_.empty()) {
        const auto whole = output_.front().head_bytes + payload_bytes(output_.front());
        if (output_sent_ < whole)
            break;
        output_sent_ -= whole;
        output_.pop_front();
    }
}

/// Asked by the loop before it sleeps.
bool Stream::pump() {
    bool worked = false;
    while (!output_.empty() && writable_ && !ended_) {
        const auto pieces = pieces_to_send();
        const auto put = transport_->send(pieces);
        if (put == -EINTR)
            continue;
        if (put == -EAGAIN) {
            writable_ = false;
            break;
        }
        if (put < 0) {
            auto error = base::fail_errno(static_cast<int>(-put), fmt::format("send to {}", peer_));
            end(std::move(error).error());
            break;
        }
        sent(static_cast<std::size_t>(put));
        worked = true;
    }
    for (auto one = blocked_.begin(); one != blocked_.end();) {
        if (output_bytes_ >= one->limit) {
            ++one;
            continue;
        }
        context_.resume_later(one->waiter);
        one = blocked_.erase(one);
        worked = true;
    }
    return worked;
}

Task<void> Stream::sent_below(std::size_t bytes) {
    const WaitForRoom wait{this, bytes};
    co_await wait;
    co_return {};
}

Task<void> Stream::secure(std::unique_ptr<Transport> tls) {
    if (input_begin_ != input_end_) // it might have been put there by somebody in between
        co_return base::fail(Errc::Corrupt,
                             fmt::format("{} sent data in front of the TLS handshake", peer_));
    DOPPEL_AWAIT_VOID(sent_below(1));
    transport_ = std::move(tls);
    securing_ = true;
    Result<void> outcome;
    while (!ended_) {
        const auto step = transport_->handshake();
        if (step == 0)
            break;
        if (step != -EAGAIN) {
            outcome = base::fail(Errc::PermissionDenied,
                                 fmt::format("TLS with {}: {}", peer_, transport_->trouble()));
            break;
        }
        readable_ = false;
        const WaitToRead wait{this};
        co_await wait;
    }
    securing_ = false;
    readable_ = writable_ = true;
    if (ended_)
        co_return std::unexpected(why_);
    co_return outcome;
}

} // namespace doppel::block::nbd
