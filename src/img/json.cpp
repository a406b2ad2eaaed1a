// SPDX-License-Identifier: Apache-2.0
#include "img/json.hpp"

#include <fmt/core.h>

namespace doppel::img {

/// Comma, line, indentation, key.
void Json::start(std::string_view key) {
    if (!empty_.empty()) {
        out_ += empty_.back() ? "\n" : ",\n";
        empty_.back() = false;
        out_.append(empty_.size() * 4, ' ');
    }
    if (!key.empty()) {
        quote(key);
        out_ += ": ";
    }
}

void Json::open(char bracket, std::string_view key) {
    start(key);
    out_ += bracket;
    empty_.push_back(true);
}

void Json::close(char bracket) {
    const bool empty = empty_.back();
    empty_.pop_back();
    if (!empty) {
        out_ += '\n';
        out_.append(empty_.size() * 4, ' ');
    }
    out_ += bracket;
}

void Json::quote(std::string_view value) {
    out_ += '"';
    for (const char c : value) {
        if (c == '"' || c == '\\')
            out_ += {'\\', c};
        else if (static_cast<unsigned char>(c) < 0x20)
            out_ += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
        else
            out_ += c;
    }
    out_ += '"';
}

} // namespace doppel::img
