// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One virtual CPU of any architecture and any engine. The thread that calls run() owns it; other
/// threads may call kick() and notify() only.
#include <cstdint>
#include <string_view>
#include <vector>

#include "cpu/interrupt_port.hpp"
#include "cpu/vm_exit.hpp"
#include "state/schema.hpp"

namespace doppel::cpu {

/// How often an engine's guest code was left for one reason, by the engine's own name for it.
struct ExitCount {
    std::string_view name; // static storage
    std::uint64_t count = 0;
};

/// Counters since creation; what an engine does not count stays 0.
struct VcpuStats {
    std::uint64_t executed = 0;     // instructions, exactly; 0 when the engine does not count them
    std::uint64_t instructions = 0; // executed by an interpreter
    std::uint64_t blocks = 0;       // code blocks entered from the dispatcher
    std::uint64_t translations = 0;
    std::uint64_t translated_guest_bytes = 0;
    std::uint64_t code_cache_bytes = 0;
    std::uint64_t translated_instructions = 0;
    std::uint64_t translation_ns = 0;       // CPU time for one of these, about
    std::uint64_t host_bytes_percent = 0;   // for 100 guest bytes: hot path of the median block
    std::uint64_t code_cache_evictions = 0; // of an eighth, when it was full
    std::uint64_t loops = 0; // translations that check memory accesses before a loop, not in it
    std::uint64_t tlb_misses = 0;
    std::uint64_t tlb_flushes = 0;
    std::uint64_t fallbacks = 0;       // instructions handed to the interpreter
    std::uint64_t direct_ns = 0;       // users' code on the host's CPU itself, in other processes
    std::uint64_t direct_runs = 0;     // how often it was entered
    std::uint64_t direct_pages = 0;    // that were mapped for it
    std::uint64_t direct_given_up = 0; // times that it did not pay
    std::uint64_t exceptions = 0;
    std::uint64_t interrupts = 0;
    std::uint64_t pio_accesses = 0;
    std::uint64_t mmio_accesses = 0;
    std::uint64_t halts = 0;
    std::uint64_t kicks = 0;
    std::uint64_t stops = 0;           // of all other vCPUs, by an engine that needs to be alone
    std::uint64_t stop_waiting_ns = 0; // until they stood still
    std::vector<ExitCount> exits{};    // every vCPU of a VM has the same names in the same order
};

class Vcpu : public Wakeup {
public:
    ~Vcpu() override = default;
    virtual std::string_view engine_name() const = 0;

    /// Runs guest code until something needs the caller. vCPU thread only.
    virtual VmExit run() = 0;
    /// Any thread, async-signal-safe: makes the current or next run() return KickExit soon (a
    /// running engine looks at least every 1000 code blocks).
    virtual void kick() noexcept = 0;

    /// RESET of the CPU (Intel SDM Vol. 3A §10.1.1); the interrupt controller is reset by the
    /// board.
    virtual void reset() = 0;
    virtual void save(state::Encoder& to) const = 0;
    /// All or nothing; the VM is paused.
    virtual base::Result<void> load(state::Decoder& from) = 0;
    virtual VcpuStats stats() const = 0;
};

} // namespace doppel::cpu
