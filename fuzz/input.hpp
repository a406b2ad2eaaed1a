// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace doppel::fuzz {

/// The bytes of the input, in order; zeros when they are used up.
class Input {
public:
    explicit Input(std::span<const std::byte> bytes) : rest_{bytes} {}
    bool empty() const { return rest_.empty(); }

    std::uint64_t number(std::size_t bytes) {
        std::uint64_t value = 0;
        for (std::size_t i = 0; i < bytes && !rest_.empty(); ++i) {
            value |= std::to_integer<std::uint64_t>(rest_[0]) << (8 * i);
            rest_ = rest_.subspan(1);
        }
        return value;
    }
    std::span<const std::byte> all() {
        const auto all = rest_;
        rest_ = {};
        return all;
    }

private:
    std::span<const std::byte> rest_;
};

} // namespace doppel::fuzz
