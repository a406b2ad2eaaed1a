// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What the qcow2 tests share: images on a simulated disk, a disk as a plain array beside them.
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "block/memory/sim_disk.hpp"
#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

class NoOpener final : public ImageOpener {
public:
    Task<std::unique_ptr<Node>> open_backing(std::string written, std::string, std::string,
                                             ImageOptions) override {
        return ready<std::unique_ptr<Node>>(base::fail(Errc::NotFound, written));
    }
    Result<std::unique_ptr<Node>> open_part(const std::string& written, const std::string&,
                                            const ImageOptions&) override {
        return base::fail(Errc::NotFound, written);
    }
};

struct TestRig {
    std::unique_ptr<base::EventLoop> loop = base::EventLoop::create().value();
    std::unique_ptr<IoContext> context = IoContext::create(*loop, IoKind::Threads).value();
    NoOpener opener;

    template <typename T> Result<T> wait(Task<T> task) { return context->wait(std::move(task)); }

    Result<void> create(SimDisk& disk, std::uint64_t size, OptionValues options) {
        return wait(
            format().create({context.get(), disk.open(), size, std::move(options), &opener}));
    }
    Result<std::unique_ptr<Qcow2Node>> open(SimDisk& disk, Access access = Access::ReadWrite) {
        OpenRequest request{context.get(), disk.open(), {}, &opener};
        request.options.access = access;
        return wait(Qcow2Node::open(std::move(request)));
    }
};

/// Random bytes that compress a little.
inline std::vector<std::byte> random_bytes(std::mt19937& random, std::size_t size) {
    std::vector<std::byte> bytes(size);
    for (auto& byte : bytes)
        byte = static_cast<std::byte>(random() & 0x3f);
    return bytes;
}

} // namespace doppel::block::qcow2
