// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Names in UTF-16, as VHD and VHDX store them. Any thread.
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace doppel::block {

enum class ByteOrder : unsigned char { Little, Big };

/// Up to the first NUL. What is no character (half a surrogate pair) becomes U+FFFD.
std::string utf8_of(std::span<const std::byte> utf16, ByteOrder order);
/// Without a NUL. Bytes that are not UTF-8 become U+FFFD.
std::vector<std::byte> utf16_of(std::string_view utf8, ByteOrder order);

} // namespace doppel::block
