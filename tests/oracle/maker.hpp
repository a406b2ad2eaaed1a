// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What CPUs of other makers do otherwise where the manuals leave it open. The engines do as AMD's
/// do, so on such a host all is compared but what differs among these; on others not what is
/// allowed here.
#include "cpu/x86/decoder/instruction.hpp"
#include "tests/oracle/case.hpp"

namespace doppel::oracle {

/// What may differ from the host.
struct Allowance {
    bool everything = false;
    bool x87 = false;
    bool mxcsr = false;
    bool ymm = false;
    bool memory = false;
    bool upper_halves = false; // of the general registers
    std::uint64_t flags = 0;
    std::uint64_t cr2 = 0;
};

/// Little on a host of AMD's.
Allowance allowance(const Case& test, const cpu::x86::Instruction& in, const Outcome& host,
                    const Outcome& guest);

} // namespace doppel::oracle
