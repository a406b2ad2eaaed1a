// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Executes guest code one instruction at a time, in every mode: the engine `interpreter`, the
/// oracle the translator is checked against, and its fallback for rare instructions.
/// Intel SDM (June 2025) Vol. 1 and 2; AMD APM Vol. 3 where the host is AMD's.
///
/// An instruction either completes or faults with the architectural state as it was before: every
/// check comes before the first write, memory is written before registers and flags. Arithmetic is
/// done by the host's own instruction, so even the undefined flags are those of a real CPU.
/// x87, MMX, SSE and AVX go to a VectorUnit.
///
/// Compiled for general registers only, no libc, no allocation: translated code may call it while
/// the guest's vector registers are live in the host's, except for instructions that concern these
/// (uses_vector_state()): before them the caller stores the guest's vectors in CpuState::xsave and
/// loads them again afterwards.
#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/x86/decoder/instruction.hpp"
#include "cpu/x86/system/context.hpp"

namespace doppel::cpu::x86 {

/// Executes x87, MMX, SSE and AVX instructions on CpuState::xsave. vCPU thread only.
class VectorUnit {
public:
    /// Like a function of the system layer: false = cx.fault is set and nothing has changed (but
    /// for what the CPU changes, too: exception flags). `bytes` are those of the instruction,
    /// `next` is the RIP behind it.
    [[nodiscard]] virtual bool execute(SystemContext& cx, const Instruction& instruction,
                                       const std::uint8_t* bytes, std::uint64_t next) noexcept = 0;

protected:
    ~VectorUnit() = default;
};

/// The instruction reads or writes CpuState::xsave.
constexpr bool uses_vector_state(const Instruction& instruction);

/// What the engine does next.
enum class StepResult : std::uint8_t {
    Continue, // with state.rip; cx.changes tells what else has changed
    Halted,   // HLT: state.activity is Halted, rip behind it
    Shutdown, // triple fault
};

/// One per vCPU, about 400 KiB: lives on the heap or in the vCPU. vCPU thread only.
class Interpreter {
public:
    Interpreter(SystemContext& cx, VectorUnit& vectors) : cx_{cx}, vectors_{vectors} {}

    /// One of: an instruction from state.rip; up to a page of iterations of a REP string
    /// instruction (state.rip then may be that instruction still); the delivery of a fault it
    /// caused. Neither interrupts nor other events: service_events() between two steps is the
    /// engine's.
    StepResult step();

    /// The same for an instruction the caller has decoded; `bytes` are what it was decoded from.
    StepResult execute(const Instruction& instruction, const std::uint8_t* bytes);

    /// Instructions completed; a REP string instruction counts once, at its end.
    [[gnu::always_inline]] std::uint64_t instructions() const { return instructions_; }
    /// As InstructionMeter counts.
    [[gnu::always_inline]] std::uint64_t executed() const { return instructions_ + faults_; }

private:
    /// A decoded instruction. It is found by its bytes, so it is good wherever these bytes are and
    /// there is nothing to invalidate when code changes.
    struct Decoded {
        std::array<std::uint64_t, 2> bytes{}; // zero from the length on
        std::uint8_t key = 0;                 // code size + 1; 0 = empty
        Instruction instruction{};
    };
    static constexpr std::size_t kDecoded = 4096;

    const Decoded* fetch();
    const Decoded* fetch_quickly(std::uint64_t linear, CodeSize code_size);
    const Decoded* fetch_carefully(CodeSize code_size);
    Decoded& slot(std::uint64_t linear);
    static bool matches(const Decoded& decoded, const std::uint64_t (&bytes)[2],
                        CodeSize code_size);
    StepResult run(const Instruction& instruction, const std::uint8_t* bytes);
    StepResult fault();

    SystemContext& cx_;
    VectorUnit& vectors_;
    std::uint64_t instructions_ = 0;
    std::uint64_t faults_ = 0; // instructions that ended in one
    std::array<Decoded, kDecoded> decoded_{};
};

constexpr bool uses_vector_state(const Instruction& instruction) {
    switch (instruction.type) {
    case InstructionClass::X87:
    case InstructionClass::Mmx:
    case InstructionClass::Sse:
    case InstructionClass::Avx: return true;
    default: break;
    }
    switch (instruction.op) {
    case Op::Fxsave:
    case Op::Fxrstor:
    case Op::Xsave:
    case Op::Xsaveopt:
    case Op::Xsavec:
    case Op::Xsaves:
    case Op::Xrstor:
    case Op::Xrstors: return true;
    default: return false;
    }
}

} // namespace doppel::cpu::x86
