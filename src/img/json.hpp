// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Writes JSON text: objects and arrays of what img prints. Any thread.
#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace doppel::img {

class Json {
public:
    void begin_object(std::string_view key = {}) { open('{', key); }
    void end_object() { close('}'); }
    void begin_array(std::string_view key = {}) { open('[', key); }
    void end_array() { close(']'); }
    void text(std::string_view key, std::string_view value) {
        start(key);
        quote(value);
    }
    void number(std::string_view key, std::uint64_t value) {
        start(key);
        out_ += std::to_string(value);
    }
    void flag(std::string_view key, bool value) {
        start(key);
        out_ += value ? "true" : "false";
    }
    /// The whole, with a line's end.
    std::string take() {
        out_ += '\n';
        return std::move(out_);
    }

private:
    void open(char bracket, std::string_view key);
    void close(char bracket);
    void start(std::string_view key);
    void quote(std::string_view value);

    std::string out_;
    std::vector<bool> empty_; // per level
};

} // namespace doppel::img
