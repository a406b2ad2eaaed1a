// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The language of the opcode tables. A row is four words, or six if the instruction also has a VEX
/// form:
///
///   encoding   map.opcode, then constraints. Maps: none = primary, 0F, 0F38, 0F3A. Opcodes: one, a
///   list
///              "63,64", a range "70-7F" (one entry each), or "50+" (the low three bits are a
///              register). Constraints: np 66 f3 f2 (mandatory prefix, several = any of them; none
///              of them named = prefixes do not choose), mem reg (mod), /0../7, rm0..rm7, m64 no64,
///              W0 W1, L0 L1, B0 B1.
///   op         semantics
///   operands   Intel order. First letters and sizes as in SDM Vol. 2 appendix A.2:
///              E G R M I J A O Z(opcode register) S C D, V W U H L, P Q N, B(vvvv); ST0 STi; fixed
///              registers by name. Sizes: table.hpp. "Evw" = register v, memory w; likewise Edb,
///              Edw. Suffix: = written, + read and written, * only the address is used; none: read.
///   traits     r: w: u: flags read, written, undefined (letters o s z a p c d i t, * = all);
///              ir: iw: ix: implicit general registers read, written, both (a c d b S=rsp B=rbp
///              s=rsi t=rdi r=r11, * = all of the first eight); words of table kWords in
///              table_builder.hpp.
///   vex_*      the VEX form's operands and traits; constraints (W0, L1, …) may stand in
///   vex_traits.
///
/// Of two rows that match the first one counts.

#include "cpu/x86/decoder/op.hpp"

namespace doppel::cpu::x86::decoder {

struct Row {
    const char* encoding;
    Op op;
    const char* operands;
    const char* traits;
    const char* vex_operands = nullptr;
    const char* vex_traits = nullptr;
};

} // namespace doppel::cpu::x86::decoder
