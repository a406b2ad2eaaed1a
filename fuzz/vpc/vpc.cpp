// SPDX-License-Identifier: Apache-2.0
/// A VHD image. The checksums of header and footers are made right, so that what they guard is
/// reached.
#include <cstring>

#include "../image_fuzz.hpp"
#include "base/bytes.hpp"
#include "block/vpc/vpc_node.hpp"

namespace {

void fix_sum(std::span<std::byte> bytes, std::size_t sum_at) {
    std::uint32_t sum = 0;
    for (std::size_t i = 0; i < bytes.size(); ++i)
        if (i < sum_at || i >= sum_at + 4)
            sum += static_cast<std::uint32_t>(bytes[i]);
    doppel::base::store_be(bytes.data() + sum_at, ~sum);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static doppel::block::fuzz::World world{doppel::block::vpc::format()}; // threads start once
    const auto input = std::as_bytes(std::span{data, size});
    std::vector<std::byte> image{input.begin(), input.end()};
    for (std::size_t at = 0; at + 512 <= image.size(); at += 512) {
        const std::span rest{image.data() + at, image.size() - at};
        if (std::memcmp(rest.data(), "conectix", 8) == 0)
            fix_sum(rest.first(512), 64);
        if (rest.size() >= 1024 && std::memcmp(rest.data(), "cxsparse", 8) == 0)
            fix_sum(rest.first(1024), 36);
    }
    world.run(image);
    return 0;
}
