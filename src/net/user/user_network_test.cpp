// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "net/user/user_network.hpp"

using namespace doppel;
using namespace doppel::net;

namespace {

using Bytes = std::vector<std::uint8_t>;

/// A card that keeps what it gets while it has room.
struct Card final : FrameReceiver {
    std::vector<Bytes> got{};
    std::size_t room = 1000;
    std::size_t receive(std::span<const Arrival> frames) noexcept override {
        const auto count = std::min(room, frames.size());
        room -= count;
        for (const auto& [frame, segment] : frames.first(count)) {
            const auto* const bytes = reinterpret_cast<const std::uint8_t*>(frame.data());
            got.emplace_back(bytes, bytes + frame.size());
        }
        return count;
    }
    /// The first that satisfies the condition; empty when there is none.
    template <typename Condition> Bytes find(Condition&& condition) const {
        for (const auto& frame : got)
            if (condition(frame))
                return frame;
        return {};
    }
};

std::uint32_t word(const Bytes& frame, std::size_t at) {
    return std::uint32_t{frame[at]} << 24 | std::uint32_t{frame[at + 1]} << 16 |
           std::uint32_t{frame[at + 2]} << 8 | frame[at + 3];
}
unsigned half(const Bytes& frame, std::size_t at) { return word(frame, at) >> 16; }
bool is_arp(const Bytes& frame) { return half(frame, 12) == 0x0806; }
bool is_ip(const Bytes& frame, unsigned protocol) {
    return half(frame, 12) == 0x0800 && frame[23] == protocol;
}

/// ARP (RFC 826), from 52:54:00:12:34:56 at 10.0.2.15.
Bytes arp(unsigned operation, std::uint32_t target) {
    Bytes frame{0xff, 0xff,
                0xff, 0xff,
                0xff, 0xff,
                0x52, 0x54,
                0,    0x12,
                0x34, 0x56,
                8,    6,
                0,    1,
                8,    0,
                6,    4,
                0,    static_cast<std::uint8_t>(operation),
                0x52, 0x54,
                0,    0x12,
                0x34, 0x56,
                10,   0,
                2,    15,
                0,    0,
                0,    0,
                0,    0};
    for (int shift = 24; shift >= 0; shift -= 8)
        frame.push_back(static_cast<std::uint8_t>(target >> shift));
    frame.resize(60);
    return frame;
}

std::uint16_t free_port(int type) {
    const base::UniqueFd fd{::socket(AF_INET, type, 0)};
    sockaddr_in place{};
    place.sin_family = AF_INET;
    place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t bytes = sizeof place;
    REQUIRE(::bind(fd.get(), reinterpret_cast<sockaddr*>(&place), bytes) == 0);
    REQUIRE(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&place), &bytes) == 0);
    return ntohs(place.sin_port);
}

base::UniqueFd connect_to(std::uint16_t port) {
    base::UniqueFd fd{::socket(AF_INET, SOCK_STREAM, 0)};
    sockaddr_in place{};
    place.sin_family = AF_INET;
    place.sin_port = htons(port);
    place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&place), sizeof place) == 0);
    return fd;
}

struct Rig {
    explicit Rig(const UserOptions& options = {})
        : network{UserNetwork::create(*loop, options).value()} {
        network->set_receiver(&card);
    }
    ~Rig() { network->set_receiver(nullptr); }
    void send(const Bytes& frame) { network->send(std::as_bytes(std::span{frame})); }
    void run() {
        for (int i = 0; i < 20; ++i)
            loop->run_ready();
    }
    std::unique_ptr<base::EventLoop> loop = base::EventLoop::create().value();
    Card card;
    std::unique_ptr<UserNetwork> network;
};

UserOptions with_forward(std::uint16_t port, Forward::Protocol protocol = Forward::Protocol::Tcp) {
    UserOptions options;
    options.forwards.push_back({protocol, INADDR_LOOPBACK, port, 0, 22});
    return options;
}

} // namespace

TEST_CASE("user network: the host answers ARP at its address, and at no other") {
    Rig rig;
    rig.send(arp(1, 0x0a00'0202));
    CHECK(rig.card.got.empty()); // never on the stack of send()
    rig.run();
    const auto answer = rig.card.find(is_arp);
    REQUIRE(answer.size() >= 42);
    CHECK(half(answer, 20) == 2);
    CHECK(word(answer, 28) == 0x0a00'0202);
    rig.card.got.clear();
    rig.send(arp(1, 0x0a00'0263));
    rig.run();
    CHECK(rig.card.find(is_arp).empty());
}

TEST_CASE("user network: another subnet moves the host") {
    UserOptions options;
    options.network = 0xc0a8'0700;
    Rig rig{options};
    rig.send(arp(1, 0x0a00'0202));
    rig.run();
    CHECK(rig.card.find(is_arp).empty());
    rig.send(arp(1, 0xc0a8'0702));
    rig.run();
    CHECK(!rig.card.find(is_arp).empty());
}

TEST_CASE("user network: a connection to a forwarded port arrives as SYN at the guest") {
    const auto port = free_port(SOCK_STREAM);
    Rig rig{with_forward(port)};
    rig.send(arp(1, 0x0a00'0202)); // now it knows where 10.0.2.15 is
    rig.run();
    const auto client = connect_to(port);
    rig.run();
    const auto syn = rig.card.find([](const Bytes& frame) { return is_ip(frame, 6); });
    REQUIRE(syn.size() >= 54);
    CHECK(word(syn, 30) == 0x0a00'020f); // to 10.0.2.15
    CHECK(half(syn, 36) == 22);
    CHECK((syn[47] & 0x3f) == 2); // SYN alone
}

TEST_CASE("user network: what a full card did not take is kept, in order, and sockets wait") {
    const auto port = free_port(SOCK_STREAM);
    Rig rig{with_forward(port)};
    rig.card.room = 1;
    rig.send(arp(1, 0x0a00'0202));
    rig.send(arp(1, 0x0a00'0203));
    rig.run();
    REQUIRE(rig.card.got.size() == 1);
    const auto client = connect_to(port);
    rig.run();
    CHECK(rig.card.got.size() == 1);
    rig.card.room = 1000;
    rig.run();
    CHECK(rig.card.got.size() == 1); // nobody has said so yet
    rig.network->receiver_ready();
    rig.run();
    REQUIRE(rig.card.got.size() >= 3);
    CHECK(word(rig.card.got[0], 28) == 0x0a00'0202);
    CHECK(word(rig.card.got[1], 28) == 0x0a00'0203);
    CHECK(is_ip(rig.card.got[2], 6));
}

TEST_CASE("user network: a port that is taken is refused by name, TCP and UDP") {
    for (const auto protocol : {Forward::Protocol::Tcp, Forward::Protocol::Udp}) {
        const auto loop = base::EventLoop::create().value();
        const auto port = free_port(protocol == Forward::Protocol::Tcp ? SOCK_STREAM : SOCK_DGRAM);
        const auto options = with_forward(port, protocol);
        const auto first = UserNetwork::create(*loop, options);
        REQUIRE(first);
        const auto second = UserNetwork::create(*loop, options);
        REQUIRE(!second);
        CHECK(second.error().code == base::Errc::Busy);
        CHECK(second.error().message().find("127.0.0.1:" + std::to_string(port)) !=
              std::string::npos);
    }
}

TEST_CASE("user network: forwards that cannot be") {
    const auto loop = base::EventLoop::create().value();
    auto options = with_forward(8080);
    options.forwards[0].host_address = 0xc000'0201; // 192.0.2.1, for documentation (RFC 5737)
    const auto elsewhere = UserNetwork::create(*loop, options);
    REQUIRE(!elsewhere);
    CHECK(elsewhere.error().code == base::Errc::InvalidArgument);
    options = with_forward(8080);
    options.forwards[0].guest_address = 0x0a00'030f;
    const auto outside = UserNetwork::create(*loop, options);
    REQUIRE(!outside);
    CHECK(outside.error().message().find("10.0.3.15") != std::string::npos);
}
