// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The engine `interpreter`: a vCPU that runs everything through Interpreter.
#include <atomic>
#include <memory>

#include "cpu/rendezvous.hpp"
#include "cpu/x86/board_ports.hpp"
#include "cpu/x86/vcpu.hpp"

namespace doppel::cpu::x86 {

/// vCPU thread only, except kick() and notify().
class InterpreterVcpu final : public Vcpu, private Rendezvous::Participant {
public:
    /// What `wiring` names outlives the vCPU. The vCPU is as after RESET; vCPU 0 is the bootstrap
    /// processor, the others wait for a SIPI.
    /// `others` is where the VM's vCPUs meet, nullptr when this is the only one.
    static base::Result<std::unique_ptr<InterpreterVcpu>>
    create(const VcpuWiring& wiring, unsigned vcpu_count, Rendezvous* others = nullptr);
    ~InterpreterVcpu() override;

    std::string_view engine_name() const override { return "interpreter"; }
    VmExit run() override;
    void kick() noexcept override;
    void notify() noexcept override;
    void reset() override;
    void save(state::Encoder& to) const override;
    base::Result<void> load(state::Decoder& from) override;
    VcpuStats stats() const override;
    CpuState& state() override;
    void state_changed() override;
    const EventLog* events() const override;

    /// Steps to run before run() returns KickExit of itself; 0 = without end. For tests and the
    /// checking mode.
    void set_step_limit(std::uint64_t steps) { step_limit_ = steps; }

private:
    struct Parts; // state, system context, interpreter, vector unit
    InterpreterVcpu(std::unique_ptr<Parts> parts, Rendezvous* others);
    void request_safepoint() noexcept override;
    VmExit run_loop();

    std::unique_ptr<Parts> parts_;
    Rendezvous* others_;                // owned by the engine's factory, outlives us; may be null
    std::atomic<bool> attention_{true}; // kicked, or the InterruptPort wants a look
    std::atomic<bool> kicked_{false};
    std::atomic<bool> safepoint_{false};
    std::uint64_t step_limit_ = 0;
    VcpuStats counts_;
};

} // namespace doppel::cpu::x86
