// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Which 32-bit code is translated: that of a protected or compatibility mode whose segments say
/// nothing, so that an effective address is a linear address. Intel SDM (June 2025) Vol. 3A §3.2.1
/// (basic flat model).
#include "cpu/x86/system/context.hpp"

namespace doppel::cpu::x86::frontend {

/// 32-bit code; CS, SS, DS, ES have base 0 and reach everywhere, the stack pointer is ESP. FS and
/// GS may be anything.
bool is_flat32(const SystemContext& cx);

} // namespace doppel::cpu::x86::frontend
