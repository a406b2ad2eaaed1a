// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Test support: one instruction decoded by us and by Zydis, compared field by field.

#include <cstdint>
#include <span>
#include <string>

#include "cpu/x86/decoder/decoder.hpp"

namespace doppel::cpu::x86 {

struct Difference {
    std::string field;  // empty: both agree, or the difference is on the allow-list
    std::string detail; // both values, the bytes, Zydis's text
};

/// Compares every field that both know. Differences that are meant are listed, with reasons, in
/// zydis_allowed.cpp.
Difference compare_with_zydis(std::span<const std::uint8_t> bytes, CodeSize code_size);

} // namespace doppel::cpu::x86
