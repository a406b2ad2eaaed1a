// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Blocks that work much in r12 to r15, which have no home, and do without other registers: these
/// lend theirs. The instructions are changed, so that they name the lender; emit_lend.cpp exchanges
/// the values where such instructions begin and wherever they are left.
#include "cpu/x86/frontend/block_scan.hpp"

namespace doppel::cpu::x86::frontend {

/// Fills the lendings of the scan.
void lend_homes(BlockScan& scan);

} // namespace doppel::cpu::x86::frontend
