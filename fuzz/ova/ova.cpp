// SPDX-License-Identifier: Apache-2.0
/// An archive whose disks are VMDK images, or an OVF descriptor.
#include "../image_fuzz.hpp"
#include "block/ova/ova_node.hpp"
#include "block/vmdk/vmdk_node.hpp"

using namespace doppel::block;

namespace {

Task<std::unique_ptr<ImageNode>> open_inside(IoContext& context, std::unique_ptr<Node> file,
                                             ImageOptions like) {
    fuzz::Opener opener;
    OpenRequest request{&context, std::move(file), like, &opener};
    DOPPEL_AWAIT(node, vmdk::format().open(std::move(request)));
    co_return node;
}

int probe(std::span<const std::byte> head, std::uint64_t) { return ova::is_package(head) ? 90 : 0; }

Task<std::unique_ptr<ImageNode>> open(OpenRequest request) {
    DOPPEL_AWAIT(node, ova::OvaNode::open(std::move(request), open_inside));
    co_return std::unique_ptr<ImageNode>{std::move(node)};
}

constexpr Format kFormat{"ova", "", probe, open, nullptr, {}, nullptr};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static fuzz::World world{kFormat}; // threads start once
    world.run(std::as_bytes(std::span{data, size}));
    return 0;
}
