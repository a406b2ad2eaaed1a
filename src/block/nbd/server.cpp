// SPDX-License-Identifier: Apache-2.0
#include "block/nbd/server.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include <fmt/core.h>

#include "block/nbd/session.hpp"

namespace doppel::block::nbd {

std::vector<Context> Export::contexts() const {
    std::vector<Context> all{{1, std::string{kBaseAllocation}, Context::Kind::Allocation, {}}};
    if (allocation_depth)
        all.push_back({2, "qemu:allocation-depth", Context::Kind::Depth, {}});
    std::uint32_t id = 3;
    for (const auto& bitmap : bitmaps)
        all.push_back({id++, "qemu:dirty-bitmap:" + bitmap, Context::Kind::Bitmap, bitmap});
    return all;
}

std::uint16_t Export::flags() const {
    using namespace transmission;
    // One node serves all connections: a flush on one covers what completed on any.
    const auto common = HAS_FLAGS | SEND_DF | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN;
    const auto writing = read_only ? READ_ONLY : SEND_TRIM | SEND_WRITE_ZEROES;
    return static_cast<std::uint16_t>(common | writing);
}

Server::Server(IoContext& context, std::vector<Export> exports, ServerOptions options)
    : context_{context}, exports_{std::move(exports)}, options_{std::move(options)} {}

Server::~Server() {
    DOPPEL_VERIFY(sessions_.empty(), "a server was stopped before it is destroyed");
    if (watching_)
        context_.loop().remove(listener_.get());
}

Result<void> Server::listen(base::UniqueFd socket) {
    listener_ = std::move(socket);
    watch();
    if (!watching_)
        return base::fail(Errc::Io, "the socket cannot be watched");
    return {};
}

/// Watches the socket just as long as there is room for a client.
void Server::watch() {
    const bool room = options_.max_clients == 0 || sessions_.size() < options_.max_clients;
    const bool wanted = listener_ && room && !stopping_;
    if (wanted == watching_)
        return;
    if (wanted) {
        const auto added = context_.loop().add(listener_.get(), EPOLLIN,
                                               [this](std::uint32_t) { accept_clients(); });
        watching_ = added.has_value();
    } else {
        context_.loop().remove(listener_.get());
        watching_ = false;
    }
}

void Server::accept_clients() {
    while (watching_) {
        base::UniqueFd client{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)};
        if (!client)
            return; // nobody left, or one that has gone again
        const int yes = 1;
        ::setsockopt(client.get(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        const auto peer = fmt::format("client {}", served_ + 1);
        if (auto started = serve(std::move(client), peer); !started && options_.warn)
            options_.warn(started.error().message());
        // The listening socket may block in accept4: ask again only when the loop says so.
        return;
    }
}

Result<void> Server::serve(base::UniqueFd socket, std::string peer) {
    auto session = std::make_unique<Session>(*this, std::move(socket), peer);
    DOPPEL_TRY_VOID(session->start());
    auto* raw = session.get();
    sessions_.push_back(std::move(session));
    ++served_;
    watch();
    raw->run().then([this, raw, peer](const Result<void>& result) {
        if (!result && options_.warn)
            options_.warn(fmt::format("{}: {}", peer, result.error().message()));
        context_.loop().post([this, raw] { forget(raw); });
    });
    return {};
}

void Server::forget(Session* session) {
    std::erase_if(sessions_, [&](const auto& one) { return one.get() == session; });
    watch();
    if (sessions_.empty() && stopped_)
        context_.resume_later(std::exchange(stopped_, {}));
}

Task<void> Server::stop() {
    stopping_ = true;
    watch();
    for (const auto& session : sessions_)
        session->shut();
    struct WaitForAll {
        Server* server;
        bool await_ready() const noexcept { return server->sessions_.empty(); }
        void await_suspend(std::coroutine_handle<> waiter) const { server->stopped_ = waiter; }
        void await_resume() const noexcept {}
    };
    const WaitForAll wait{this};
    co_await wait;
    co_return {};
}

} // namespace doppel::block::nbd
