// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>

#include "chardev/fd_backend.hpp"
#include "chardev/socket_listener.hpp"

using namespace doppel;
using namespace doppel::chardev;

namespace {

struct Receiver final : ByteReceiver {
    std::atomic<std::size_t> room{1u << 20};
    std::string got;
    base::EventLoop* stop_loop = nullptr;
    std::size_t stop_at = SIZE_MAX;
    std::function<void()> on_full;

    std::size_t can_receive() const noexcept override { return room; }
    void receive(std::span<const std::byte> bytes) noexcept override {
        for (const auto b : bytes)
            got += static_cast<char>(b);
        room -= bytes.size();
        if (got.size() >= stop_at)
            stop_loop->stop();
        else if (room == 0 && on_full)
            on_full();
    }
};

std::span<const std::byte> bytes_of(std::string_view text) {
    return std::as_bytes(std::span{text});
}

struct Pair {
    base::UniqueFd ours, theirs;
    Pair() {
        int ends[2];
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        ours.reset(ends[0]);
        theirs.reset(ends[1]);
    }
};

} // namespace

TEST_CASE("input goes to the receiver, never more than it has room for") {
    auto loop = base::EventLoop::create().value();
    Pair pair;
    auto backend = std::move(FdBackend::create(*loop, std::move(pair.ours))).value();
    Receiver receiver;
    receiver.room = 3;
    receiver.stop_loop = loop.get();
    receiver.stop_at = 3;
    backend->set_receiver(&receiver);
    REQUIRE(::write(pair.theirs.get(), "abcdef", 6) == 6);
    loop->run();
    CHECK(receiver.got == "abc");
}

TEST_CASE("what did not fit comes when the receiver is ready again") {
    auto loop = base::EventLoop::create().value();
    Pair pair;
    auto backend = std::move(FdBackend::create(*loop, std::move(pair.ours))).value();
    Receiver receiver;
    receiver.room = 3;
    receiver.stop_loop = loop.get();
    receiver.stop_at = 6;
    backend->set_receiver(&receiver);
    REQUIRE(::write(pair.theirs.get(), "abcdef", 6) == 6);
    receiver.on_full = [&] {
        loop->post([&] {
            receiver.room = 3;
            backend->receiver_ready();
        });
    };
    loop->run();
    CHECK(receiver.got == "abcdef");
}

TEST_CASE("output larger than the socket takes arrives whole and in order") {
    auto loop = base::EventLoop::create().value();
    Pair pair;
    auto backend = std::move(FdBackend::create(*loop, std::move(pair.ours))).value();
    std::string text;
    for (int i = 0; i < 60000; ++i)
        text += std::to_string(i) + " ";
    std::string got;
    std::thread reader{[&] {
        char buffer[4096];
        while (got.size() < text.size()) {
            const auto n = ::read(pair.theirs.get(), buffer, sizeof buffer);
            if (n <= 0)
                break;
            got.append(buffer, static_cast<std::size_t>(n));
        }
        loop->stop();
    }};
    for (std::size_t at = 0; at < text.size(); at += 1000)
        backend->write(bytes_of(std::string_view{text}.substr(at, 1000)));
    loop->run();
    reader.join();
    CHECK(got == text);
}

TEST_CASE("a burst of single bytes is one write") {
    auto loop = base::EventLoop::create().value();
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) ==
            0); // keeps writes apart
    const base::UniqueFd theirs{ends[1]};
    auto backend = std::move(FdBackend::create(*loop, base::UniqueFd{ends[0]})).value();
    for (const char c : std::string_view{"a console says this"})
        backend->write(bytes_of({&c, 1}));
    REQUIRE(loop->add(theirs.get(), EPOLLIN, [&](std::uint32_t) { loop->stop(); }));
    loop->run();
    char buffer[64];
    CHECK(::recv(theirs.get(), buffer, sizeof buffer, MSG_DONTWAIT) == 19);
    CHECK(::recv(theirs.get(), buffer, sizeof buffer, MSG_DONTWAIT) < 0);
}

TEST_CASE("a reader that never reads delays the guest once, not for every byte") {
    auto loop = base::EventLoop::create().value();
    Pair pair;
    auto backend = std::move(FdBackend::create(*loop, std::move(pair.ours))).value();
    const std::string mebibyte(1u << 20, 'x');
    backend->write(bytes_of(mebibyte)); // the loop does not run: nothing leaves the queue
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 20; ++i)
        backend->write(bytes_of("y"));
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds{10});
}

TEST_CASE("finishing waits until the other side has read everything and closes") {
    auto loop = base::EventLoop::create().value();
    Pair pair;
    auto backend = std::move(FdBackend::create(*loop, std::move(pair.ours))).value();
    backend->write(bytes_of("last words"));
    std::atomic<bool> closed = false;
    std::string got;
    std::thread reader{[&] {
        char buffer[64];
        for (ssize_t n = 0; (n = ::read(pair.theirs.get(), buffer, sizeof buffer)) > 0;)
            got.append(buffer, static_cast<std::size_t>(n));
        closed = true;
        pair.theirs.reset();
    }};
    backend->finish(std::chrono::seconds{30});
    CHECK(closed);
    reader.join();
    CHECK(got == "last words");
}

TEST_CASE("the end of the other side is reported once") {
    auto loop = base::EventLoop::create().value();
    Pair pair;
    auto backend = std::move(FdBackend::create(*loop, std::move(pair.ours))).value();
    int hangups = 0;
    backend->set_hangup([&] {
        ++hangups;
        loop->stop();
    });
    pair.theirs.reset();
    loop->run();
    CHECK(hangups == 1);
    backend->write(bytes_of("nobody hears this"));
}

TEST_CASE("a client is served whose forerunner leaves as it comes") {
    auto loop = base::EventLoop::create().value();
    const auto path = "/tmp/doppel-chardev-test-" + std::to_string(::getpid());
    auto listener = std::move(SocketListener::create(*loop, path)).value();
    Receiver receiver;
    listener->set_receiver(&receiver);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path.c_str());
    const auto connect = [&address] {
        base::UniqueFd client{::socket(AF_UNIX, SOCK_STREAM, 0)};
        REQUIRE(::connect(client.get(), static_cast<sockaddr*>(static_cast<void*>(&address)),
                          sizeof address) == 0);
        return client;
    };
    auto first = connect();
    loop->run_ready();
    loop->run_ready();
    const auto second = connect(); // both events are of one round, this one comes first in it
    first.reset();
    REQUIRE(::write(second.get(), "ab", 2) == 2);
    for (int round = 0; round < 4 && receiver.got.empty(); ++round)
        loop->run_ready();
    CHECK(receiver.got == "ab");
}

TEST_CASE("a socket console serves clients one after the other") {
    auto loop = base::EventLoop::create().value();
    const auto path = "/tmp/doppel-chardev-test-" + std::to_string(::getpid());
    auto listener = std::move(SocketListener::create(*loop, path)).value();
    CHECK(SocketListener::create(*loop, path).error().code == base::Errc::Busy);
    Receiver receiver;
    receiver.stop_loop = loop.get();
    receiver.stop_at = 4;
    listener->set_receiver(&receiver);
    std::thread clients{[&] {
        for (const char* text : {"ab", "cd"}) {
            const base::UniqueFd client{::socket(AF_UNIX, SOCK_STREAM, 0)};
            sockaddr_un address{};
            address.sun_family = AF_UNIX;
            std::strcpy(address.sun_path, path.c_str());
            REQUIRE(::connect(client.get(), static_cast<sockaddr*>(static_cast<void*>(&address)),
                              sizeof address) == 0);
            REQUIRE(::write(client.get(), text, 2) == 2);
            ::shutdown(client.get(), SHUT_WR);
            char end = 0;
            CHECK(::read(client.get(), &end, 1) == 0); // it has seen our end and closed
        }
    }};
    loop->run();
    listener.reset();
    clients.join();
    CHECK(receiver.got == "abcd");
    CHECK(::access(path.c_str(), F_OK) != 0);
}
