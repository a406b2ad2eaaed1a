// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/decoder/decoder.hpp"

namespace doppel::cpu::x86 {

DecodeStatus decode(std::span<const std::uint8_t> bytes, CodeSize, Instruction&) {
    return bytes.empty() ? DecodeStatus::NeedMoreBytes : DecodeStatus::Undefined;
}

} // namespace doppel::cpu::x86
