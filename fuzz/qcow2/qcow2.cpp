// SPDX-License-Identifier: Apache-2.0
/// A hostile qcow2 image in memory: opened, described, checked, mapped, read, written, repaired.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "block/memory/memory_node.hpp"
#include "block/qcow2/qcow2_node.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

constexpr std::uint64_t kMaxFile = 24u << 20;
constexpr int kSteps = 16; // of a walk through a disk that may claim 2^62 bytes

class NoOpener final : public ImageOpener {
public:
    Task<std::unique_ptr<Node>> open_backing(std::string written, std::string, std::string,
                                             ImageOptions) override {
        return ready<std::unique_ptr<Node>>(base::fail(Errc::NotFound, written));
    }
    Result<std::unique_ptr<Node>> open_part(const std::string&, const std::string&,
                                            const ImageOptions&) override {
        return std::make_unique<MemoryNode>(std::vector<std::byte>{}, kMaxFile);
    }
};

struct World {
    std::unique_ptr<base::EventLoop> loop = base::EventLoop::create().value();
    std::unique_ptr<IoContext> context = IoContext::create(*loop, IoKind::Threads).value();
    NoOpener opener;

    Result<std::unique_ptr<qcow2::Qcow2Node>> open(std::span<const std::byte> bytes, Access access,
                                                   bool repair_later) {
        OpenRequest request{context.get(),
                            std::make_unique<MemoryNode>(
                                std::vector<std::byte>{bytes.begin(), bytes.end()}, kMaxFile),
                            {},
                            &opener};
        request.options.access = access;
        request.options.repair_later = repair_later;
        request.options.backing = false;
        return context->wait(qcow2::Qcow2Node::open(std::move(request)));
    }
    template <typename T> void run(Task<T> task) { (void)context->wait(std::move(task)); }
};

void walk(World& world, qcow2::Qcow2Node& node) {
    std::vector<std::byte> bytes(70000);
    std::uint64_t at = 0;
    for (int i = 0; i < kSteps && at < node.size(); ++i) {
        const auto extent = world.context->wait(node.status(at, node.size() - at));
        const auto part = std::min<std::uint64_t>(bytes.size(), node.size() - at);
        world.run(node.read(at, IoBuffer{std::span{bytes}.first(part)}));
        if (!extent)
            break;
        at += extent->length;
    }
}

void change(World& world, qcow2::Qcow2Node& node) {
    std::vector<std::byte> bytes(5000, std::byte{0x5a});
    const auto part = std::min<std::uint64_t>(bytes.size(), node.size());
    const auto from = IoBuffer{std::span{bytes}.first(part)};
    world.run(node.write(0, from, Durability::Cached));
    world.run(node.write(node.size() - part, from, Durability::Cached));
    const auto some = std::min<std::uint64_t>(node.size(), 1u << 20);
    world.run(node.write_zeroes(0, some / 2, Unmap::Allow, Durability::Cached));
    world.run(node.discard(some / 2, some / 2));
    world.run(node.flush());
    world.run(node.create_snapshot("s", 1));
    world.run(node.apply_snapshot("s1")); // a name that a seed has
    world.run(node.delete_snapshot("s"));
    world.run(node.delete_snapshot("s1"));
    world.run(node.resize(some / 1024 * 512));
    world.run(node.resize(some / 512 * 1024));
    world.run(node.make_empty());
    world.run(node.close());
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static World world; // threads are started once
    const auto bytes = std::as_bytes(std::span{data, size});
    if (auto reader = world.open(bytes, Access::ReadOnly, false)) {
        walk(world, **reader);
        world.run((*reader)->check(Repair::None));
    }
    if (auto writer = world.open(bytes, Access::ReadWrite, false))
        change(world, **writer);
    if (auto repairer = world.open(bytes, Access::ReadWrite, true))
        world.run((*repairer)->check(Repair::All));
    return 0;
}
