// SPDX-License-Identifier: Apache-2.0
#include "../image_fuzz.hpp"
#include "block/parallels/parallels_node.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static doppel::block::fuzz::World world{
        doppel::block::parallels::format()}; // threads start once
    world.run(std::as_bytes(std::span{data, size}));
    return 0;
}
