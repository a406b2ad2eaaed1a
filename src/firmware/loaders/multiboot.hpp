// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace doppel::firmware {

/// Offset of the multiboot header in the first 8 KiB of the file, if there is a valid one
/// (Multiboot Specification 0.6.96 §3.1.1).
std::optional<std::size_t> find_multiboot_header(std::span<const std::byte> file);

} // namespace doppel::firmware
