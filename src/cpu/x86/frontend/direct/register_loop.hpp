// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Loops whose translation is what they are.
#include <cstddef>
#include <cstdint>
#include <span>

namespace doppel::cpu::x86::frontend {

/// Whether the instruction at offset `at` of this page of 64-bit code is in an innermost loop of
/// few instructions that work on general and x87 registers only: translated it is as fast, and an
/// interrupt costs less where nobody has to stop a process.
bool in_register_loop(std::span<const std::uint8_t> page, std::size_t at);

} // namespace doppel::cpu::x86::frontend
