// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What every function of the system layer works on: the state of one vCPU, its memory, its model,
/// the fault in flight.
///
/// Conventions of this folder
///   * Compiled for general registers only, no libc calls, no allocation: translated code calls it
///     while the guest's vector registers are live. Only BoardAccess leads outside.
///   * A function that can fault returns bool: true = done, false = `context.fault` says what to
///     deliver and the architectural state is as before the instruction (A/D bits excepted).
///     The engine then calls deliver_fault() (exceptions.hpp).
///   * During an instruction `state.rip` is that instruction's own RIP; functions that transfer
///     control take `next`, the RIP behind it, and set `state.rip`. All others leave it alone: the
///     engine advances it.
///   * What an engine may have cached about the vCPU is reported in `context.changes`.
#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/x86/board_access.hpp"
#include "cpu/x86/cpu_state.hpp"
#include "cpu/x86/decoder/op.hpp"
#include "cpu/x86/event_log.hpp"
#include "cpu/x86/system/tlb.hpp"
#include "description/cpu_model.hpp"

namespace doppel::cpu::x86 {

/// What `context.changes` collects; the engine clears it when it has acted.
namespace change {
inline constexpr std::uint32_t kMode = 1; // CS, CPL, CR0, CR4, EFER, VM or AC flag: decode and
                                          // privilege assumptions
inline constexpr std::uint32_t kAddressSpace = 2; // CR3 or PCID: another set of translations
inline constexpr std::uint32_t kSegments = 4;     // any base, limit or access of ES DS SS FS GS
inline constexpr std::uint32_t kEvents = 8;    // IF, TF, shadows, CR8, NMI unblocked, pending #DB:
                                               // call service_events() before the next instruction
inline constexpr std::uint32_t kDebug = 16;    // DR7 or DR0..3
inline constexpr std::uint32_t kReset = 32;    // INIT: everything
inline constexpr std::uint32_t kActivity = 64; // state.activity is no longer Running
inline constexpr std::uint32_t kFastCalls = 128; // STAR, LSTAR or another MSR kept in CpuState
} // namespace change

/// A fault or trap that waits to be delivered.
struct Fault {
    Vector vector = Vector::UD;
    bool has_error_code = false;
    std::uint32_t error_code = 0;
    std::uint64_t cr2 = 0;        // #PF: goes to CR2 on delivery
    std::uint64_t debug_bits = 0; // #DB: goes to DR6 on delivery
};

/// CPUID features as the decoder names them.
struct FeatureSet {
    std::array<std::uint64_t, 2> words{};
    static_assert(static_cast<unsigned>(IsaFeature::Count) <= 128);
    constexpr bool has(IsaFeature feature) const {
        const auto bit = static_cast<unsigned>(feature);
        return (words[bit / 64] >> (bit % 64) & 1) != 0;
    }
    constexpr void add(IsaFeature feature) {
        const auto bit = static_cast<unsigned>(feature);
        words[bit / 64] |= std::uint64_t{1} << (bit % 64);
    }
};

/// Features of the model that are no instructions: they decide which CR4, EFER and MSR bits exist.
struct ModelTraits {
    std::uint64_t cr4_allowed = 0;
    std::uint64_t efer_allowed = 0;
    std::uint64_t xcr0_allowed = 1;
    std::uint8_t physical_bits = 40;
    bool huge_pages = false; // 1 GiB
    bool spec_ctrl = false;  // IA32_SPEC_CTRL, PRED_CMD, FLUSH_CMD
    bool arch_capabilities = false;
    bool tsc_adjust = false;
    bool amd = false; // vendor: SYSCALL in legacy mode, SYSENTER in long mode, SYSRET, MSRs
};

/// One per vCPU, made by make_context() (system.hpp), at an address that never changes. vCPU thread
/// only.
struct SystemContext {
    CpuState& state;
    BoardAccess& board;
    RamView ram{};
    Tlb tlb{};
    TlbListener* tlb_listener = nullptr; // told of every guest TLB flush besides `tlb`; may be null
    FeatureSet features{};
    ModelTraits traits{};
    const description::CpuidEntry* cpuid_entries = nullptr; // of the model, which outlives us
    std::size_t cpuid_count = 0;
    std::uint32_t vcpu_index = 0;
    std::uint32_t vcpu_count = 1;
    std::uint64_t tsc_frequency_hz = 0;
    bool own_entropy = false; // RDRAND asks the board, not the host CPU

    Fault fault{};
    std::uint32_t changes = 0;
    EventLog events{};
    std::uint32_t pauses = 0; // interpreted

    // --- of the instruction in progress; begin_instruction() sets them ---
    bool stepping = false;        // not step_free(): end_instruction() has work
    bool step_trap = false;       // TF was set when it began
    bool shadowed = false;        // it ran in a shadow, which ends with it
    bool resume = false;          // RF was set when it began
    std::uint64_t debug_hits = 0; // DR6 bits of data and I/O breakpoints it met

    // --- raise: fills `fault`, returns false so that `return cx.gp(0);` reads well ---
    [[gnu::always_inline]] bool raise(Vector vector) {
        fault = {.vector = vector};
        return false;
    }
    [[gnu::always_inline]] bool raise(Vector vector, std::uint32_t error_code) {
        fault = {.vector = vector, .has_error_code = true, .error_code = error_code};
        return false;
    }
    [[gnu::always_inline]] bool gp(std::uint32_t error_code) {
        return raise(Vector::GP, error_code);
    }
    [[gnu::always_inline]] bool ud() { return raise(Vector::UD); }

    // --- modes ---
    [[gnu::always_inline]] bool protected_mode() const { return (state.cr0 & CR0_PE) != 0; }
    [[gnu::always_inline]] bool v86() const { return (state.rflags & FLAG_VM) != 0; }
    /// Real or virtual-8086 mode: segments are selector * 16.
    [[gnu::always_inline]] bool real_or_v86() const { return !protected_mode() || v86(); }
    [[gnu::always_inline]] bool long_mode() const { return (state.efer & EFER_LMA) != 0; }
    [[gnu::always_inline]] bool code64() const {
        return long_mode() && state.segment[Cs].is_long();
    }
    [[gnu::always_inline]] unsigned iopl() const {
        return static_cast<unsigned>(state.rflags >> 12 & 3);
    }
};

/// Bits 63:47 (LA57 is not offered) all equal.
[[gnu::always_inline]] constexpr inline bool is_canonical(std::uint64_t linear) {
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(linear << 16) >> 16) == linear;
}

} // namespace doppel::cpu::x86
