// SPDX-License-Identifier: Apache-2.0
/// A hostile server. The input is a row of pieces, each with its length (big-endian, 16 bits) in
/// front; the next one is sent when the client has said something, or says nothing for a while.
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "block/nbd/client_node.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

struct World {
    std::unique_ptr<base::EventLoop> loop = base::EventLoop::create().value();
    std::unique_ptr<IoContext> context = IoContext::create(*loop, IoKind::Threads).value();
};

Task<void> use(IoContext& context, int fd) {
    nbd::Url url;
    url.text = "fuzzer";
    DOPPEL_AWAIT(node, nbd::ClientNode::adopt(context, base::UniqueFd{fd}, url, Access::ReadOnly));
    std::vector<std::byte> bytes(5000);
    const auto part = std::min<std::uint64_t>(bytes.size(), node->size());
    if (part == 0)
        co_return {};
    for (int i = 0; i < 4; ++i) {
        auto status = node->status(0, node->size());
        (void)co_await status;
        auto first = node->read(0, IoBuffer{std::span{bytes}.first(part)});
        auto last = node->read(node->size() - part, IoBuffer{std::span{bytes}.first(part)});
        (void)co_await first;
        (void)co_await last;
    }
    auto closing = node->close();
    (void)co_await closing;
    co_return {};
}

class Liar {
public:
    Liar(int fd, std::span<const std::uint8_t> script) : fd_{fd}, script_{script} {}
    void say() {
        rounds_ = 0;
        if (script_.size() < 2) {
            ::shutdown(fd_, SHUT_WR);
            ended_ = true;
            return;
        }
        const std::size_t wanted = script_[0] * 256u + script_[1];
        script_ = script_.subspan(2);
        const auto piece = script_.first(std::min(wanted, script_.size()));
        [[maybe_unused]] const auto sent =
            ::send(fd_, piece.data(), piece.size(), MSG_NOSIGNAL); // it may have hung up
        script_ = script_.subspan(piece.size());
    }

    /// Once per round of the loop, which goes on without sleeping while there is more to say.
    bool grow_impatient() {
        if (!ended_ && ++rounds_ > kPatience)
            say();
        return !ended_;
    }

private:
    static constexpr int kPatience = 20;
    int fd_;
    std::span<const std::uint8_t> script_;
    int rounds_ = 0;
    bool ended_ = false;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static World world;
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends.data()) != 0)
        return 0;
    const base::UniqueFd peer{ends[0]};
    Liar liar{peer.get(), {data, size}};
    std::array<std::byte, 65536> heard{};
    (void)world.loop->add(peer.get(), EPOLLIN, [&](std::uint32_t) {
        if (::read(peer.get(), heard.data(), heard.size()) <= 0)
            world.loop->remove(peer.get());
        else
            liar.say();
    });
    liar.say();
    const auto poll = world.loop->add_poll([&] { return liar.grow_impatient(); });
    (void)world.context->wait(use(*world.context, ends[1]));
    world.loop->remove_poll(poll);
    world.loop->remove(peer.get());
    return 0;
}
