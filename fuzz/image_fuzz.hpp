// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A hostile image of any format, in memory: opened, described, checked, mapped, read, written,
/// resized, repaired. Each target in fuzz/ names its format.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "block/format.hpp"
#include "block/memory/memory_node.hpp"

namespace doppel::block::fuzz {

constexpr std::uint64_t kMaxFile = 24u << 20;
constexpr int kSteps = 16; // of a walk through a disk that may claim any size

/// Every name that an image has opens a file of its own.
class Opener final : public ImageOpener {
public:
    Task<std::unique_ptr<Node>> open_backing(std::string, std::string, std::string,
                                             ImageOptions) override {
        return ready<std::unique_ptr<Node>>(
            std::make_unique<MemoryNode>(std::vector<std::byte>(1u << 20, std::byte{3})));
    }
    Result<std::unique_ptr<Node>> open_part(const std::string&, const std::string&,
                                            const ImageOptions&) override {
        return std::make_unique<MemoryNode>(part, kMaxFile);
    }
    std::vector<std::byte> part;
};

class World {
public:
    /// `like`: opened with these `driver` options and secrets.
    explicit World(const Format& format, ImageOptions like = {})
        : format_{format}, like_{std::move(like)} {}

    void run(std::span<const std::byte> bytes) {
        (void)format_.probe(bytes.first(std::min<std::size_t>(bytes.size(), 4096)), bytes.size());
        opener_.part.assign(bytes.begin(), bytes.end());
        if (auto reader = open(bytes, Access::ReadOnly, false)) {
            (void)(*reader)->info();
            walk(**reader);
            wait((*reader)->check(Repair::None));
        }
        if (format_.create == nullptr)
            return;
        if (auto writer = open(bytes, Access::ReadWrite, false))
            change(**writer);
        if (auto repairer = open(bytes, Access::ReadWrite, true))
            wait((*repairer)->check(Repair::All));
    }

private:
    Result<std::unique_ptr<ImageNode>> open(std::span<const std::byte> bytes, Access access,
                                            bool repair_later) {
        OpenRequest request{context_.get(),
                            std::make_unique<MemoryNode>(
                                std::vector<std::byte>{bytes.begin(), bytes.end()}, kMaxFile),
                            like_, &opener_};
        request.options.access = access;
        request.options.repair_later = repair_later;
        return context_->wait(format_.open(std::move(request)));
    }
    template <typename T> void wait(Task<T> task) { (void)context_->wait(std::move(task)); }

    void walk(ImageNode& node) {
        std::vector<std::byte> bytes(70000);
        std::uint64_t at = 0;
        for (int i = 0; i < kSteps && at < node.size(); ++i) {
            const auto extent = context_->wait(node.status(at, node.size() - at));
            const auto part = std::min<std::uint64_t>(bytes.size(), node.size() - at);
            wait(node.read(at, IoBuffer{std::span{bytes}.first(part)}));
            if (!extent)
                break;
            at += extent->length;
        }
    }

    void change(ImageNode& node) {
        std::vector<std::byte> bytes(5000, std::byte{0x5a});
        const auto part = std::min<std::uint64_t>(bytes.size(), node.size());
        const IoBuffer from{std::span{bytes}.first(part)};
        wait(node.write(0, from, Durability::Cached));
        wait(node.write(node.size() - part, from, Durability::Cached));
        const auto some = std::min<std::uint64_t>(node.size(), 1u << 20);
        wait(node.write_zeroes(0, some / 2, Unmap::Allow, Durability::Cached));
        wait(node.discard(some / 2, some / 2));
        wait(node.flush());
        wait(node.resize(some / 1024 * 512));
        wait(node.resize(some / 512 * 1024));
        wait(node.close());
    }

    const Format& format_;
    const ImageOptions like_;
    std::unique_ptr<base::EventLoop> loop_ = base::EventLoop::create().value();
    std::unique_ptr<IoContext> context_ = IoContext::create(*loop_, IoKind::Threads).value();
    Opener opener_;
};

} // namespace doppel::block::fuzz
