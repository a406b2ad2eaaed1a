// SPDX-License-Identifier: Apache-2.0
#include "block/nbd/connecting.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include <fmt/core.h>

namespace doppel::block::nbd {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::chrono::seconds kConnectPatience{30}; // a host that is there answers much sooner
constexpr milliseconds kRetry{50};

// A host that vanished is missed after about half a minute even when nothing is asked of it.
constexpr int kKeepAliveIdle = 15;
constexpr int kKeepAliveInterval = 5;
constexpr int kKeepAliveProbes = 3;

/// Milliseconds for poll(2) until `deadline`.
int left_until(steady_clock::time_point deadline) {
    const auto left = std::chrono::ceil<milliseconds>(deadline - steady_clock::now());
    return static_cast<int>(std::max(left, milliseconds{0}).count());
}

/// 0, or an errno. The socket does not block.
int connect_until(int fd, const sockaddr* to, socklen_t size, steady_clock::time_point deadline) {
    while (::connect(fd, to, size) != 0) {
        if (errno == EAGAIN) { // a unix socket whose queue is full
            if (left_until(deadline) == 0)
                return ETIMEDOUT;
            ::poll(nullptr, 0, static_cast<int>(kRetry.count()));
            continue;
        }
        if (errno != EINPROGRESS)
            return errno;
        pollfd ready{fd, POLLOUT, 0};
        int count = 0;
        do
            count = ::poll(&ready, 1, left_until(deadline));
        while (count < 0 && errno == EINTR);
        int error = count == 0 ? ETIMEDOUT : 0;
        socklen_t length = sizeof error;
        if (count > 0)
            ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
        return error;
    }
    return 0;
}

Result<base::UniqueFd> connect_unix(const Url& url, steady_clock::time_point deadline) {
    base::UniqueFd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, url.socket.data(), url.socket.size());
    const auto* to = reinterpret_cast<const sockaddr*>(&address);
    const int error = fd ? connect_until(fd.get(), to, sizeof address, deadline) : errno;
    if (error != 0)
        return base::fail_errno(error, fmt::format("connect to '{}'", url.socket));
    return fd;
}

void tune(int fd) {
    const auto set = [fd](int level, int option, int value) {
        ::setsockopt(fd, level, option, &value, sizeof value);
    };
    set(IPPROTO_TCP, TCP_NODELAY, 1);
    set(SOL_SOCKET, SO_KEEPALIVE, 1);
    set(IPPROTO_TCP, TCP_KEEPIDLE, kKeepAliveIdle);
    set(IPPROTO_TCP, TCP_KEEPINTVL, kKeepAliveInterval);
    set(IPPROTO_TCP, TCP_KEEPCNT, kKeepAliveProbes);
}

Result<base::UniqueFd> connect_tcp(const Url& url, steady_clock::time_point deadline) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (const int error = ::getaddrinfo(url.host.c_str(), url.port.c_str(), &hints, &found);
        error != 0)
        return base::fail(Errc::NotFound,
                          fmt::format("the address of '{}': {}", url.host, ::gai_strerror(error)));
    const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> all{found, &::freeaddrinfo};
    int error = ECONNREFUSED;
    for (const auto* one = all.get(); one != nullptr; one = one->ai_next) {
        base::UniqueFd fd{
            ::socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
        error = fd ? connect_until(fd.get(), one->ai_addr, one->ai_addrlen, deadline) : errno;
        if (error == 0) {
            tune(fd.get());
            return fd;
        }
    }
    return base::fail_errno(error, fmt::format("connect to {}:{}", url.host, url.port));
}

} // namespace

Task<base::UniqueFd> connect_to(IoContext& context, Url url) {
    Result<base::UniqueFd> socket;
    const auto patience =
        url.patience.count() == 0 ? kConnectPatience : std::min(kConnectPatience, url.patience);
    auto wait = context.on_worker([&] {
        const auto deadline = steady_clock::now() + patience;
        socket = url.socket.empty() ? connect_tcp(url, deadline) : connect_unix(url, deadline);
    });
    co_await wait;
    co_return socket;
}

} // namespace doppel::block::nbd
