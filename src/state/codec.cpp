// SPDX-License-Identifier: Apache-2.0
#include "state/codec.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "base/verify.hpp"

namespace doppel::state {

void Encoder::text(std::string_view text) {
    DOPPEL_VERIFY(text.size() <= UINT16_MAX, "names in a state are short");
    integer(static_cast<std::uint16_t>(text.size()));
    raw(std::as_bytes(std::span{text}));
}

std::size_t Encoder::begin_length() {
    const auto position = bytes_.size();
    integer(std::uint32_t{0});
    return position;
}

void Encoder::end_length(std::size_t position) {
    const auto length = bytes_.size() - position - sizeof(std::uint32_t);
    DOPPEL_VERIFY(length <= UINT32_MAX, "one state stays below 4 GiB");
    base::store_le(bytes_.data() + position, static_cast<std::uint32_t>(length));
}

base::Result<std::string> Decoder::text() {
    const auto length = DOPPEL_TRY(integer<std::uint16_t>());
    const auto bytes = DOPPEL_TRY(raw(length));
    std::string out(length, '\0');
    std::ranges::transform(bytes, out.begin(), [](std::byte b) { return static_cast<char>(b); });
    return out;
}

base::Result<Decoder> Decoder::confined() {
    const auto length = DOPPEL_TRY(integer<std::uint32_t>());
    return Decoder{DOPPEL_TRY(raw(length))};
}

std::unexpected<base::Error> Decoder::too_short(std::size_t wanted) const {
    return base::fail(
        base::Errc::Corrupt,
        fmt::format("saved state ends early: {} bytes wanted, {} left", wanted, rest_.size()));
}

} // namespace doppel::state
