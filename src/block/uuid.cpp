// SPDX-License-Identifier: Apache-2.0
#include "block/uuid.hpp"

#include <sys/random.h>

#include <algorithm>
#include <utility>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "base/verify.hpp"

namespace doppel::block {

Uuid random_uuid() {
    Uuid uuid{};
    const auto got = ::getrandom(uuid.data(), uuid.size(), 0);
    DOPPEL_VERIFY(got == static_cast<ssize_t>(uuid.size()), "getrandom() gives 16 bytes");
    // Of version 4, variant 1, whichever end the third field is read from.
    uuid[6] = (uuid[6] & std::byte{0x0f}) | std::byte{0x40};
    uuid[7] = (uuid[7] & std::byte{0x0f}) | std::byte{0x40};
    uuid[8] = (uuid[8] & std::byte{0x3f}) | std::byte{0x80};
    return uuid;
}

std::string guid_text(const Uuid& uuid) {
    auto text = fmt::format("{:08x}-{:04x}-{:04x}-", base::load_le<std::uint32_t>(uuid.data()),
                            base::load_le<std::uint16_t>(uuid.data() + 4),
                            base::load_le<std::uint16_t>(uuid.data() + 6));
    for (std::size_t i = 8; i < uuid.size(); ++i)
        text += fmt::format("{}{:02x}", i == 10 ? "-" : "", static_cast<unsigned>(uuid[i]));
    return text;
}

std::string uuid_text(Uuid uuid) {
    std::ranges::reverse(uuid.begin(), uuid.begin() + 4);
    std::swap(uuid[4], uuid[5]);
    std::swap(uuid[6], uuid[7]);
    return guid_text(uuid);
}

} // namespace doppel::block
