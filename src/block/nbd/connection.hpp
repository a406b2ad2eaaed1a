// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The client's end of one connection: the handshake, then requests side by side. Owner thread
/// only.
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "block/io/alarm.hpp"
#include "block/nbd/protocol.hpp"
#include "block/nbd/stream.hpp"
#include "block/nbd/tls.hpp"

namespace doppel::block::nbd {

/// What the server says about the export.
struct ExportFacts {
    std::uint64_t size_bytes = 0;
    std::uint16_t flags = 0;
    std::uint32_t min_block = 1; // power of two
    std::uint32_t max_block = kMaxPayload;
    bool structured = false;
    std::optional<std::uint32_t> allocation; // the id of base:allocation
};

struct StatusExtent {
    std::uint64_t length = 0;
    std::uint32_t flags = 0;
};

class Connection {
public:
    /// `patience`: a server that neither says nor takes anything for so long while something is
    /// asked of it, at most twice as long, is given up; 0: never.
    Connection(IoContext& context, base::UniqueFd socket, std::string peer,
               std::chrono::seconds patience);
    ~Connection();
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    /// `tls`: null for a connection in the clear. Errors: the peer does not speak the protocol, has
    /// no such export, wants TLS or has none.
    Task<ExportFacts> negotiate(std::string export_name, TlsCredentials* tls, std::string tls_host);

    /// `buffer`: what READ fills and WRITE sends. Errors: the server's, in words; the connection's.
    Task<void> perform(Request request, IoBuffer buffer);
    /// The extents from `offset` on, at least one, none of length 0.
    Task<std::vector<StatusExtent>> block_status(std::uint64_t offset, std::uint32_t length);
    std::size_t under_way() const noexcept { return pending_.size(); }

    /// Says goodbye; nothing is under way and nothing follows.
    Task<void> close();

private:
    struct Pending {
        Request request;
        IoBuffer buffer;
        std::uint64_t message = 0;                     // its number in the stream
        std::map<std::uint64_t, std::uint64_t> filled; // READ: begin → end
        std::vector<StatusExtent> extents;
        Result<void> outcome;
        bool done = false;
        std::coroutine_handle<> waiter;
    };
    struct WaitForAnswer {
        Pending* pending;
        bool await_ready() const noexcept { return pending->done; }
        void await_suspend(std::coroutine_handle<> waiter) const { pending->waiter = waiter; }
        void await_resume() const noexcept {}
    };

    void watch();
    void look();

    // client_handshake.cpp
    Task<void> agree(std::string export_name, TlsCredentials* tls, std::string tls_host);
    struct OptionAnswer {
        OptionReply type = OptionReply::ACK;
        std::vector<std::byte> data;
    };
    void send_option(Option option, std::vector<std::byte> data);
    Task<OptionAnswer> option_answer(Option option);
    Task<void> greet();
    Task<void> start_tls(TlsCredentials& tls, std::string host);
    Task<void> ask_for_structure();
    Task<void> ask_for_allocation(std::string export_name);
    Task<void> go(std::string export_name);
    Task<void> choose_old(std::string export_name);
    Result<void> take_info(std::span<const std::byte> data);

    // connection.cpp
    Task<void> submit(Pending& pending);
    Task<void> receive_answers();
    Task<void> simple_answer();
    Task<void> chunk();
    Task<void> data_chunk(Pending& pending, std::uint32_t length);
    Task<void> hole_chunk(Pending& pending, std::uint32_t length);
    Task<void> status_chunk(Pending& pending, std::uint32_t length);
    Task<void> error_chunk(Pending& pending, ReplyType type, std::uint32_t length);
    Result<Pending*> find(std::uint64_t cookie);
    Result<void> fill(Pending& pending, std::uint64_t offset, std::uint64_t length);
    Task<void> receive_into(IoBuffer buffer);
    void finish(Pending& pending);
    void fail_all(const Error& error);
    std::unexpected<Error> broken(const std::string& what) const;

    IoContext& context_;
    Stream stream_;
    std::chrono::seconds patience_;
    Alarm alarm_;
    bool watching_ = false;   // the alarm is set
    std::uint64_t moved_ = 0; // stream_.moved() when it was
    bool negotiating_ = false;
    ExportFacts facts_;
    bool fixed_ = false;
    bool no_zeroes_ = false;
    bool got_export_ = false;
    std::uint64_t next_cookie_ = 1;
    std::map<std::uint64_t, Pending*> pending_; // by cookie; each lives in the coroutine that waits
    std::optional<Error> dead_;
    std::optional<Task<void>> receiver_;
};

} // namespace doppel::block::nbd
