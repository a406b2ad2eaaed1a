// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The interpreter's x87, MMX, SSE and AVX: each instruction runs on the host CPU, with the guest's
/// vector state loaded around it (docs/decisions/003-host-executes-simd.md).
///
/// Floating-point exceptions that the guest has unmasked are taken for real: the instruction runs
/// under the guest's own MXCSR and x87 control word, and a signal handler brings #XM and #MF back
/// here (masking them and looking at the flags afterwards would be wrong for underflow, whose flag
/// depends on the mask).
/// The x87's instruction and operand pointers are the guest's own, kept here: FIP is the offset,
/// with CS in bits 47:32 outside 64-bit mode; likewise FDP.
/// Masked moves and gathers are done element by element, so that their faults are precise.
#include <memory>

#include "base/result.hpp"
#include "cpu/x86/interpreter/interpreter.hpp"
#include "cpu/x86/native/rewrite.hpp"
#include "cpu/x86/native/stub_cache.hpp"
#include "cpu/x86/native/stub_call.hpp"

namespace doppel::cpu::x86::native {

/// One per vCPU. vCPU thread only.
class NativeUnit final : public VectorUnit {
public:
    static base::Result<std::unique_ptr<NativeUnit>> create();

    bool execute(SystemContext& cx, const Instruction& in, const std::uint8_t* bytes,
                 std::uint64_t next) noexcept override;

private:
    struct MemoryOperand {
        std::uint64_t offset = 0;
        std::uint64_t linear = 0;
    };
    NativeUnit() = default;
    bool locate(SystemContext& cx, const Instruction& in, std::uint64_t next, MemoryOperand& at);
    bool fill_memory(SystemContext& cx, const Instruction& in, const MemoryOperand& at);
    bool store_memory(SystemContext& cx, const Instruction& in, const MemoryOperand& at);
    void run_stub(SystemContext& cx, const Instruction& in, const HostCode& code, StubCall& call);
    bool raise_trap(SystemContext& cx, std::uint64_t trap);

    static constexpr std::size_t kMemoryBytes = 128;
    alignas(64) std::array<std::byte, kMemoryBytes> memory_{};
    std::unique_ptr<StubCache> stubs_;
    std::uint64_t components_ = 3;
    bool amd_ = false; // the host
};

} // namespace doppel::cpu::x86::native
