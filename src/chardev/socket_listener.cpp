// SPDX-License-Identifier: Apache-2.0
#include "chardev/socket_listener.hpp"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <fmt/core.h>

#include "base/log.hpp"

namespace doppel::chardev {

using base::Errc;
using base::Result;

namespace {

Result<sockaddr_un> address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("socket path '{}' is longer than {} bytes", path,
                                      sizeof address.sun_path - 1),
                          "use a shorter path");
    std::memcpy(address.sun_path, path.data(), path.size());
    return address;
}

const sockaddr* as_sockaddr(const sockaddr_un& address) {
    return static_cast<const sockaddr*>(static_cast<const void*>(&address));
}

/// Removes a socket file that nobody listens on; leaves everything else alone.
Result<void> remove_stale(const std::string& path, const sockaddr_un& address) {
    struct stat info{};
    if (::lstat(path.c_str(), &info) != 0)
        return {};
    if (!S_ISSOCK(info.st_mode))
        return base::fail(Errc::AlreadyExists, fmt::format("'{}' exists and is not a socket", path),
                          "choose another path");
    const base::UniqueFd probe{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    if (::connect(probe.get(), as_sockaddr(address), sizeof address) == 0 || errno != ECONNREFUSED)
        return base::fail(Errc::Busy, fmt::format("socket '{}' is in use by another process", path),
                          "choose another path");
    ::unlink(path.c_str());
    return {};
}

} // namespace

SocketListener::SocketListener(base::EventLoop& loop, base::UniqueFd fd, std::string path)
    : loop_{loop}, listener_{std::move(fd)}, path_{std::move(path)} {}

Result<std::unique_ptr<SocketListener>> SocketListener::create(base::EventLoop& loop,
                                                               std::string path) {
    const auto address = DOPPEL_TRY(address_of(path));
    DOPPEL_TRY_VOID(remove_stale(path, address));
    base::UniqueFd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    if (!fd || ::bind(fd.get(), as_sockaddr(address), sizeof address) != 0 ||
        ::listen(fd.get(), 1) != 0)
        return base::fail_errno(errno, fmt::format("listen on socket '{}'", path));
    auto listener =
        std::unique_ptr<SocketListener>{new SocketListener{loop, std::move(fd), std::move(path)}};
    DOPPEL_TRY_VOID(loop.add(listener->listener_.get(), EPOLLIN,
                             [self = listener.get()](std::uint32_t) { self->accept_soon(); }));
    return listener;
}

SocketListener::~SocketListener() {
    *alive_ = false;
    loop_.remove(listener_.get());
    ::unlink(path_.c_str());
}

/// Behind the events of this round: the client before this one may have left in the same one.
void SocketListener::accept_soon() {
    loop_.post([this, alive = alive_] {
        if (*alive)
            accept_client();
    });
}

void SocketListener::accept_client() {
    base::UniqueFd fd{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)};
    const std::scoped_lock lock{mutex_};
    if (!fd || client_ != nullptr)
        return; // one at a time: the second sees its connection close
    auto client = FdBackend::create(loop_, std::move(fd));
    if (!client) {
        base::log_warning("console client refused: {}", client.error().message());
        return;
    }
    client_ = std::move(*client);
    client_->set_hangup([this] { drop_client(); });
    client_->set_receiver(receiver_);
}

void SocketListener::drop_client() {
    std::unique_ptr<FdBackend> gone;
    const std::scoped_lock lock{mutex_};
    gone = std::move(client_);
}

void SocketListener::write(std::span<const std::byte> bytes) noexcept {
    const std::scoped_lock lock{mutex_};
    if (client_ != nullptr)
        client_->write(bytes);
}

void SocketListener::set_receiver(ByteReceiver* receiver) noexcept {
    const std::scoped_lock lock{mutex_};
    receiver_ = receiver;
    if (client_ != nullptr)
        client_->set_receiver(receiver);
}

void SocketListener::receiver_ready() noexcept {
    const std::scoped_lock lock{mutex_};
    if (client_ != nullptr)
        client_->receiver_ready();
}

/// A client that goes on listening is not waited for.
void SocketListener::finish(std::chrono::milliseconds limit) {
    const std::scoped_lock lock{mutex_};
    if (client_ != nullptr)
        client_->drain(limit);
}

} // namespace doppel::chardev
