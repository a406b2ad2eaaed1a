// SPDX-License-Identifier: Apache-2.0
#pragma once
/// All formats. Any thread.
#include "block/format.hpp"

namespace doppel::block {

std::span<const Format* const> formats();

/// Error InvalidArgument lists the names there are.
Result<const Format*> find_format(std::string_view name);

/// What the content looks like; raw when like nothing else. `head`: the first kProbeBytes, or the
/// whole file if it is shorter.
constexpr std::size_t kProbeBytes = 4096;
const Format& probe_format(std::span<const std::byte> head, std::uint64_t file_bytes);

} // namespace doppel::block
