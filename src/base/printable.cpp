// SPDX-License-Identifier: Apache-2.0
#include "base/printable.hpp"

#include <fmt/core.h>

namespace doppel::base {

namespace {

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

/// U+0000 to U+001f, U+007f to U+009f; the latter are C2 80 to C2 9f.
bool is_control(unsigned char before, unsigned char c) {
    return c < 0x20 || c == 0x7f || (before == 0xc2 && c >= 0x80 && c < 0xa0);
}

std::string escaped(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    unsigned char before = 0;
    for (const auto c : text) {
        const auto byte = static_cast<unsigned char>(c);
        if (is_control(before, byte))
            out += fmt::format("\\x{:02x}", byte);
        else
            out += c;
        before = byte;
    }
    return out;
}

} // namespace

std::string printable(std::string_view text, std::size_t most) {
    const auto whole = escaped(text);
    if (whole.size() <= most)
        return whole;
    auto head = most * 2 / 3;
    auto tail = whole.size() - most / 3;
    while (head > 0 && continues(whole[head]))
        --head;
    while (tail < whole.size() && continues(whole[tail]))
        ++tail;
    return whole.substr(0, head) + " … " + whole.substr(tail);
}

} // namespace doppel::base
