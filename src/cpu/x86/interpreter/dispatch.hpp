// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Which function executes an Op. What is not listed is #UD: VMCALL, VMMCALL, RSM.
#include "cpu/x86/interpreter/execution.hpp"

namespace doppel::cpu::x86::interpreter {

struct HandlerTable {
    Handler by_op[static_cast<std::size_t>(Op::Count)];
};
extern const HandlerTable kHandlers;

} // namespace doppel::cpu::x86::interpreter
