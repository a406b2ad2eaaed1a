// SPDX-License-Identifier: Apache-2.0
#include "block/utf16.hpp"

#include <cstdint>

namespace doppel::block {

namespace {

constexpr std::uint32_t kReplacement = 0xfffd;

bool is_surrogate(std::uint32_t unit) { return unit >= 0xd800 && unit < 0xe000; }

void append_utf8(std::string& text, std::uint32_t code) {
    const auto put = [&](std::uint32_t byte) { text += static_cast<char>(byte); };
    if (code < 0x80)
        return put(code);
    if (code < 0x800) {
        put(0xc0 | code >> 6);
    } else {
        if (code < 0x10000) {
            put(0xe0 | code >> 12);
        } else {
            put(0xf0 | code >> 18);
            put(0x80 | (code >> 12 & 0x3f));
        }
        put(0x80 | (code >> 6 & 0x3f));
    }
    put(0x80 | (code & 0x3f));
}

/// The character at `at`, which moves behind it.
std::uint32_t next_code(std::string_view utf8, std::size_t& at) {
    const auto first = static_cast<unsigned char>(utf8[at++]);
    if (first < 0x80)
        return first;
    const int more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : first >= 0xc2 ? 1 : -1;
    if (more < 0)
        return kReplacement;
    auto code = static_cast<std::uint32_t>(first & (0x3f >> more));
    for (int i = 0; i < more; ++i) {
        if (at == utf8.size() || (static_cast<unsigned char>(utf8[at]) & 0xc0) != 0x80)
            return kReplacement;
        code = code << 6 | (static_cast<unsigned char>(utf8[at++]) & 0x3f);
    }
    return code < 0x110000 && !is_surrogate(code) ? code : kReplacement;
}

} // namespace

std::string utf8_of(std::span<const std::byte> utf16, ByteOrder order) {
    const auto unit = [&](std::size_t i) {
        const auto one = static_cast<std::uint32_t>(utf16[2 * i]);
        const auto two = static_cast<std::uint32_t>(utf16[2 * i + 1]);
        return order == ByteOrder::Little ? one | two << 8 : two | one << 8;
    };
    std::string text;
    const auto units = utf16.size() / 2;
    for (std::size_t i = 0; i < units && unit(i) != 0; ++i) {
        const auto code = unit(i);
        if (!is_surrogate(code)) {
            append_utf8(text, code);
        } else if (code < 0xdc00 && i + 1 < units && unit(i + 1) >= 0xdc00 &&
                   unit(i + 1) < 0xe000) {
            append_utf8(text, 0x10000 + ((code - 0xd800) << 10) + (unit(i + 1) - 0xdc00));
            ++i;
        } else {
            append_utf8(text, kReplacement);
        }
    }
    return text;
}

std::vector<std::byte> utf16_of(std::string_view utf8, ByteOrder order) {
    std::vector<std::byte> bytes;
    const auto put = [&](std::uint32_t unit) {
        const auto low = static_cast<std::byte>(unit & 0xff);
        const auto high = static_cast<std::byte>(unit >> 8);
        bytes.push_back(order == ByteOrder::Little ? low : high);
        bytes.push_back(order == ByteOrder::Little ? high : low);
    };
    for (std::size_t at = 0; at < utf8.size();) {
        const auto code = next_code(utf8, at);
        if (code < 0x10000) {
            put(code);
        } else {
            put(0xd800 + ((code - 0x10000) >> 10));
            put(0xdc00 + ((code - 0x10000) & 0x3ff));
        }
    }
    return bytes;
}

} // namespace doppel::block
