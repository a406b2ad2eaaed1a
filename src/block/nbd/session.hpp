// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One client of a server: the handshake, then its requests side by side. Owner thread only.
#include "block/nbd/server.hpp"

namespace doppel::block::nbd {

class Session {
public:
    Session(Server& server, base::UniqueFd socket, std::string peer);
    Result<void> start() { return stream_.start(); }
    /// From the greeting to the end, when no request is under way any more.
    Task<void> run();
    void shut() { stream_.shut(); }

private:
    // handshake.cpp
    Task<bool> negotiate_in_time();
    Task<bool> negotiate(); // false: the client does not want more
    Task<bool> option(Option option, std::vector<std::byte> data);
    void reply(Option option, OptionReply type, std::vector<std::byte> data = {});
    void refuse(Option option, OptionReply type, const std::string& why);
    bool go(Option option, std::span<const std::byte> data);
    bool choose_old(std::span<const std::byte> data);
    void send_infos(Option option, const Export& chosen, Reader& wanted);
    void list(std::span<const std::byte> data);
    void contexts(Option option, std::span<const std::byte> data);
    Task<void> start_tls(std::span<const std::byte> data);
    const Export* find(const std::string& name) const;

    // session.cpp
    Task<void> transmit();
    Task<bool> accept(Request request);
    WireError validate(const Request& request) const;
    Detached perform(Request request, AlignedMemory payload);
    Task<void> carry_out(const Request& request, AlignedMemory& payload);
    Task<void> status(const Request& request, std::vector<std::byte>& chunks);
    Task<std::vector<std::byte>> extents(const Request& request, const Context& context);
    Result<std::vector<std::byte>> bitmap_extents(const Request& request,
                                                  const Context& context) const;
    void answer(const Request& request, AlignedMemory payload);
    void answer_error(const Request& request, WireError error);
    void finished(const Request& request);

    struct WaitForRoom {
        Session* session;
        std::size_t requests; // at most so many under way
        bool await_ready() const noexcept;
        void await_suspend(std::coroutine_handle<> waiter) const { session->waiter_ = waiter; }
        void await_resume() const noexcept {}
    };

    Server& server_;
    Stream stream_;
    bool fixed_ = false;
    bool no_zeroes_ = false;
    bool secure_ = false;
    bool structured_ = false;
    const Export* export_ = nullptr;
    std::vector<Context> contexts_; // that the client chose
    const Export* contexts_of_ = nullptr;

    std::size_t requests_ = 0; // under way
    std::size_t bytes_ = 0;    // of their payloads
    std::size_t room_for_ = 0; // what waiter_ waits for
    std::coroutine_handle<> waiter_;
};

} // namespace doppel::block::nbd
