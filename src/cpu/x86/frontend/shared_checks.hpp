// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What blocks do again and again, once for all of them (docs/decisions/018). Most code runs a few
/// times, and its price is its translation and its place in the host's caches: a check of the soft
/// TLB is 35 bytes in line and a call of 5, flags are saved in 14 or 5. What runs often has all
/// that in line; which code that is, checks find out by counting their calls.
///
/// All of it is called with rsp = frame, which is frame - 8 inside. Each returns to its caller, or
/// the host's stack of return predictions would be out of step.
#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/translator/emit/assembler.hpp"
#include "cpu/x86/frontend/frame.hpp"

namespace doppel::cpu::x86::frontend {

/// What a check leaves for the access behind it, see BlockTranslator::access().
enum class CheckGives : std::uint8_t { Addend, PageHost, HostAddress };

struct SharedChecks {
    using Code = const std::uint8_t*;
    static constexpr std::size_t kSizes =
        std::tuple_size_v<decltype(translator::TlbInstance::limits)>;

    /// r13 = linear address of an access. Comes back with r14 = what `gives` says, or r13 = the
    /// host's address; or else this is an Exit::Check, r13 and r14 as the check in line leaves
    /// them. By write, gives, and TlbInstance::limit_of().
    std::array<std::array<std::array<Code, kSizes>, 3>, 2> checks{};
    /// Likewise of a stack range of 64-bit code, r13 = its first byte: r14 = the addend of the
    /// stack page, which has become another one if need be.
    std::array<Code, kSizes> stack_checks{};
    Code save_flags = nullptr;    // from the register into the slot; clobbers r14
    Code restore_flags = nullptr; // the other way round
    Code begin = nullptr, end = nullptr;

    /// While it runs, FrameHeader::call_slot says where it was called.
    bool contains(Code address) const { return begin <= address && address < end; }

    /// nullptr: there is none for so many bytes.
    Code check(bool write, CheckGives gives, std::uint32_t bytes) const;
    Code stack_check(std::uint32_t bytes) const;
};

/// From the register into `slot`; clobbers r14, and not the flags.
void emit_save_flags(translator::Assembler& to, const Mem& slot);

/// `leave`: of an Exit::Check, with rsp = frame; `base`: of code memory.
SharedChecks emit_shared_checks(translator::Assembler& to, const std::uint8_t* base,
                                const std::uint8_t* leave);

} // namespace doppel::cpu::x86::frontend
