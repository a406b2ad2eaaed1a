// SPDX-License-Identifier: Apache-2.0
#include "../image_fuzz.hpp"
#include "block/vmdk/vmdk_node.hpp"

/// The extents that a descriptor names have the input as their content, too.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static doppel::block::fuzz::World world{doppel::block::vmdk::format()}; // threads start once
    world.run(std::as_bytes(std::span{data, size}));
    return 0;
}
