// SPDX-License-Identifier: Apache-2.0
#include "state/schema.hpp"

#include <algorithm>

#include <fmt/core.h>

namespace doppel::state::detail {

std::unexpected<base::Error> field_error(std::string_view kind, std::string_view name,
                                         base::Error error) {
    return std::unexpected(
        std::move(error).with_context(fmt::format("saved state of {}, field '{}'", kind, name)));
}

std::unexpected<base::Error> corrupt(std::string_view what) {
    return base::fail(base::Errc::Corrupt, std::string{what});
}

base::Result<void> decode_string(Decoder& from, std::string& value) {
    const auto length = DOPPEL_TRY(from.integer<std::uint32_t>());
    if (length > kMaxVectorElements)
        return corrupt("text is too long");
    const auto bytes = DOPPEL_TRY(from.raw(length));
    value.assign(length, '\0');
    std::ranges::transform(bytes, value.begin(), [](std::byte b) { return static_cast<char>(b); });
    return {};
}

base::Result<void> expect_kind(Decoder& from, std::string_view kind, std::uint32_t version,
                               std::uint32_t& stored_version) {
    const auto stored_kind = DOPPEL_TRY(from.text());
    if (stored_kind != kind)
        return base::fail(base::Errc::Corrupt,
                          fmt::format("saved state is of another kind than '{}'", kind));
    stored_version = DOPPEL_TRY(from.integer<std::uint32_t>());
    if (stored_version == 0 || stored_version > version)
        return base::fail(base::Errc::Unsupported,
                          fmt::format("saved state of {} has version {}, this build reads 1 to {}",
                                      kind, stored_version, version),
                          "use the release that wrote it, or a newer one");
    return {};
}

} // namespace doppel::state::detail
