// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Little- and big-endian loads and stores on byte ranges, without alignment demands. Any thread.
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace doppel::base {

template <std::unsigned_integral T> T load_le(const void* from) noexcept {
    T value;
    __builtin_memcpy(&value, from, sizeof value);
    if constexpr (std::endian::native == std::endian::big)
        value = std::byteswap(value);
    return value;
}

template <std::unsigned_integral T> void store_le(void* to, T value) noexcept {
    if constexpr (std::endian::native == std::endian::big)
        value = std::byteswap(value);
    __builtin_memcpy(to, &value, sizeof value);
}

template <std::unsigned_integral T> T load_be(const void* from) noexcept {
    return std::byteswap(load_le<T>(from));
}

template <std::unsigned_integral T> void store_be(void* to, T value) noexcept {
    store_le<T>(to, std::byteswap(value));
}

constexpr std::uint64_t align_down(std::uint64_t value, std::uint64_t power_of_two) noexcept {
    return value & ~(power_of_two - 1);
}
constexpr std::uint64_t align_up(std::uint64_t value, std::uint64_t power_of_two) noexcept {
    return align_down(value + power_of_two - 1, power_of_two);
}

} // namespace doppel::base
