// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A connected socket, with or without TLS, for coroutines: one reads, any number queue messages,
/// which leave together once per round of the loop. Owner thread only.
#include <array>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "block/aligned_memory.hpp"
#include "block/io/io_context.hpp"
#include "block/io_buffer.hpp"

namespace doppel::block::nbd {

/// What carries the bytes. Both calls do not block: -EAGAIN when they would, other negated errnos,
/// 0 at the end of what the peer sends.
class Transport {
public:
    virtual ~Transport() = default;
    virtual std::int64_t receive(std::span<std::byte> into) = 0;
    virtual std::int64_t send(std::span<const iovec> pieces) = 0;
    /// One step of a handshake: 0 when it is through, -EAGAIN, or another negated errno.
    virtual int handshake() { return 0; }
    /// Why the last call failed, when an errno does not say it.
    virtual std::string trouble() const { return {}; }
};
std::unique_ptr<Transport> plain_transport(int fd);

/// A message: a short head, then a payload that it owns.
struct Message {
    std::array<std::byte, 64> head{};
    std::size_t head_bytes = 0;
    AlignedMemory payload;
    IoBuffer borrowed; // instead of `payload`: memory of somebody who waits for the answer
};

class Stream {
public:
    Stream(IoContext& context, base::UniqueFd socket, std::string peer);
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    /// Before anything else.
    Result<void> start();

    /// Exactly as many bytes as fit. Errors: the peer closed (Errc::NotFound between two calls, no
    /// byte of this one was there; else Io), shut() was called, the host's.
    Task<void> read(std::span<std::byte> into);
    /// Reads and forgets.
    Task<void> skip(std::uint64_t bytes);
    /// From what has arrived already; false when that is too little.
    bool take(std::span<std::byte> into);

    void send(Message message);
    void send(std::vector<std::byte> bytes);
    /// Waits until less than `bytes` are queued; at once when the stream has ended.
    Task<void> sent_below(std::size_t bytes);
    /// How many messages were queued, and how many of them have left completely.
    std::uint64_t queued() const noexcept { return queued_; }
    std::uint64_t left() const noexcept { return queued_ - output_.size(); }

    /// Both directions go through `tls` from now on. Nothing may be buffered either way.
    Task<void> secure(std::unique_ptr<Transport> tls);

    /// Whoever waits gets an error, the reader inside this call; nothing moves any more. The reader
    /// must not call it.
    void shut();
    /// The same, with an error to give.
    void fail(Error error);
    /// Bytes that have gone either way so far: a sign of life.
    std::uint64_t moved() const noexcept { return moved_; }
    bool ended() const noexcept { return ended_; }
    int fd() const noexcept { return socket_.get(); }
    const std::string& peer() const noexcept { return peer_; }

private:
    struct WaitToRead {
        Stream* stream;
        bool await_ready() const noexcept { return stream->readable_ || stream->ended_; }
        void await_suspend(std::coroutine_handle<> waiter) const { stream->reader_ = waiter; }
        void await_resume() const noexcept {}
    };
    struct WaitForRoom {
        Stream* stream;
        std::size_t limit;
        bool await_ready() const noexcept {
            return stream->output_bytes_ < limit || stream->ended_;
        }
        void await_suspend(std::coroutine_handle<> waiter) const {
            stream->blocked_.push_back({limit, waiter});
        }
        void await_resume() const noexcept {}
    };
    void on_events(std::uint32_t events);
    bool pump();
    void end(Error error);
    void resume_reader();
    /// More bytes into `into`, or the error.
    Task<std::size_t> receive(std::span<std::byte> into);
    std::vector<iovec> pieces_to_send() const;
    void sent(std::size_t bytes);

    IoContext& context_;
    base::UniqueFd socket_;
    std::string peer_;
    std::unique_ptr<Transport> transport_;
    bool watched_ = false;
    bool readable_ = true;
    bool writable_ = true;
    bool ended_ = false;
    Error why_;

    std::vector<std::byte> input_;
    std::uint64_t moved_ = 0;
    std::size_t input_begin_ = 0;
    std::size_t input_end_ = 0;

    std::deque<Message> output_;
    std::size_t output_sent_ = 0; // of the first message
    std::size_t output_bytes_ = 0;
    std::uint64_t queued_ = 0;

    std::coroutine_handle<> reader_;
    struct Blocked { // waits for the queue to become shorter
        std::size_t limit = 0;
        std::coroutine_handle<> waiter;
    };
    std::deque<Blocked> blocked_;
    bool securing_ = false;
    std::uint64_t poll_number_ = 0;
};

} // namespace doppel::block::nbd
