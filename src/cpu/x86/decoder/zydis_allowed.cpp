// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/decoder/zydis_allowed.hpp"

namespace doppel::cpu::x86 {

bool is_allowed(const Disagreement&) { return false; }

} // namespace doppel::cpu::x86
