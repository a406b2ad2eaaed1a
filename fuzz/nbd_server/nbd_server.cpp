// SPDX-License-Identifier: Apache-2.0
/// A hostile client: what it sends, at once, to a server of a small disk.
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "block/memory/memory_node.hpp"
#include "block/nbd/server.hpp"
#include "block/raw/raw_node.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

constexpr std::size_t kMaxInput = 100u << 10; // fits into the socket
constexpr std::uint64_t kDisk = 1u << 20;

struct World {
    std::unique_ptr<base::EventLoop> loop = base::EventLoop::create().value();
    std::unique_ptr<IoContext> context = IoContext::create(*loop, IoKind::Threads).value();
    raw::RawNode node{std::make_unique<MemoryNode>(std::vector<std::byte>(kDisk), kDisk), {}};
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static World world;
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends.data()) != 0)
        return 0;
    const base::UniqueFd peer{ends[0]};
    nbd::Export one;
    one.name = "x";
    one.node = &world.node;
    auto other = one;
    other.name.clear();
    other.read_only = true;
    nbd::Server server{*world.context, {one, other}, {}};
    (void)server.serve(base::UniqueFd{ends[1]}, "fuzzer");
    [[maybe_unused]] const auto sent = ::write(peer.get(), data, std::min(size, kMaxInput));
    ::shutdown(peer.get(), SHUT_WR);
    std::array<std::byte, 65536> answer{};
    (void)world.loop->add(peer.get(), EPOLLIN, [&](std::uint32_t) {
        [[maybe_unused]] const auto got = ::read(peer.get(), answer.data(), answer.size());
    });
    world.loop->run_until([&] { return server.clients() == 0; });
    world.loop->remove(peer.get());
    return 0;
}
