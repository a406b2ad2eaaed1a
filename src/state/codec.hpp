// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The bytes below every saved state: little-endian integers and length-prefixed ranges.
/// The decoder treats its input as hostile: every read is bounded, nothing is trusted before it is
/// checked. Owner thread only.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"

namespace doppel::state {

class Encoder {
public:
    template <std::unsigned_integral T> void integer(T value) {
        const auto at = bytes_.size();
        bytes_.resize(at + sizeof value);
        base::store_le(bytes_.data() + at, value);
    }
    void raw(std::span<const std::byte> bytes) {
        bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    }
    /// u16 length, then the characters.
    void text(std::string_view text);
    /// Reserves a u32 length; end_length() fills in how many bytes came after it.
    std::size_t begin_length();
    void end_length(std::size_t position);

    std::span<const std::byte> bytes() const { return bytes_; }
    std::vector<std::byte> take() { return std::move(bytes_); }

private:
    std::vector<std::byte> bytes_;
};

class Decoder {
public:
    explicit Decoder(std::span<const std::byte> bytes) : rest_{bytes} {}

    template <std::unsigned_integral T> base::Result<T> integer() {
        if (rest_.size() < sizeof(T))
            return too_short(sizeof(T));
        const T value = base::load_le<T>(rest_.data());
        rest_ = rest_.subspan(sizeof(T));
        return value;
    }
    base::Result<std::span<const std::byte>> raw(std::size_t length) {
        if (rest_.size() < length)
            return too_short(length);
        const auto front = rest_.first(length);
        rest_ = rest_.subspan(length);
        return front;
    }
    base::Result<std::string> text();
    /// A u32 length and a decoder confined to that many bytes.
    base::Result<Decoder> confined();

    std::size_t remaining() const { return rest_.size(); }

private:
    std::unexpected<base::Error> too_short(std::size_t wanted) const;
    std::span<const std::byte> rest_;
};

} // namespace doppel::state
