// SPDX-License-Identifier: Apache-2.0
/// A VHDX image is whole MiB of mostly zeroes under checksums. The input is a list of sectors (a
/// u32 number, 512 bytes), from which the image is put together, and the checksums are made right.
#include <cstring>

#include "../image_fuzz.hpp"
#include "base/bytes.hpp"
#include "base/crc32c.hpp"
#include "block/vhdx/vhdx_node.hpp"

using namespace doppel;

namespace {

constexpr std::size_t kRecord = 4 + 512;
constexpr std::uint64_t kMaxImage = 8u << 20;

void fix_crc(std::vector<std::byte>& image, std::uint64_t at, std::uint64_t length) {
    if (at > image.size() || length > image.size() - at)
        return;
    base::store_le(image.data() + at + 4, std::uint32_t{0});
    base::store_le(image.data() + at + 4, base::crc32c({image.data() + at, length}));
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static block::fuzz::World world{block::vhdx::format()}; // threads start once
    std::vector<std::byte> image;
    for (std::size_t at = 0; at + kRecord <= size; at += kRecord) {
        const auto offset = base::load_le<std::uint32_t>(data + at) * std::uint64_t{512};
        if (offset >= kMaxImage)
            continue;
        image.resize(std::max<std::size_t>(image.size(), base::align_up(offset + 512, 1u << 20)));
        std::memcpy(image.data() + offset, data + at + 4, 512);
    }
    for (const auto offset : block::vhdx::kHeaderOffset)
        fix_crc(image, offset, block::vhdx::kHeaderBytes);
    for (const auto offset : block::vhdx::kRegionOffset)
        fix_crc(image, offset, block::vhdx::kRegionTableBytes);
    for (std::uint64_t at = 1u << 20; at + 4096 <= image.size(); at += 4096)
        if (std::memcmp(image.data() + at, "loge", 4) == 0)
            fix_crc(image, at, base::load_le<std::uint32_t>(image.data() + at + 8));
    world.run(image);
    return 0;
}
