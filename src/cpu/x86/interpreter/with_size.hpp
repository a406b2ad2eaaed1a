// SPDX-License-Identifier: Apache-2.0
#pragma once
/// From an operand size known at run time to a type.
#include <cstdint>

namespace doppel::cpu::x86::interpreter {

/// f.operator()<T>() for the T of `size` bytes; none smaller than kMinimum is made.
template <unsigned kMinimum, typename F>
[[gnu::always_inline]] inline std::uint64_t with_size(unsigned size, F&& f) {
    if constexpr (kMinimum <= 1)
        if (size == 1)
            return f.template operator()<std::uint8_t>();
    if constexpr (kMinimum <= 2)
        if (size == 2)
            return f.template operator()<std::uint16_t>();
    if (size == 4)
        return f.template operator()<std::uint32_t>();
    return f.template operator()<std::uint64_t>();
}

} // namespace doppel::cpu::x86::interpreter
