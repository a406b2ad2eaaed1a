// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The engine `kvm`: a vCPU that the kernel runs. HLT, IPIs, the local APIC and its timer stay in
/// the kernel; PIO, MMIO and the board's MSRs complete inside run().
///
/// The state is in the kernel while run() executes, in state() while it does not: run() puts it
/// there when it was changed, and fetches all of it before it returns. The local APIC's stays in
/// the kernel all the time and is asked for (HostedApic).
#include <linux/kvm.h>
#include <sys/types.h>

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/apic_host.hpp"
#include "cpu/kvm/ioctl.hpp"
#include "cpu/kvm/kvm_state.hpp"
#include "cpu/x86/board_access.hpp"
#include "cpu/x86/vcpu.hpp"

namespace doppel::cpu::kvm {

class KvmMachine;

/// vCPU thread only, except kick() and notify(); HostedApic as it says.
class KvmVcpu final : public x86::Vcpu, public HostedApic {
public:
    /// What `machine` and `wiring` name outlives the vCPU. It is as after RESET; vCPU 0 is the
    /// bootstrap processor, the others wait for a SIPI.
    static base::Result<std::unique_ptr<KvmVcpu>>
    create(KvmMachine& machine, const x86::VcpuWiring& wiring, unsigned vcpu_count);
    ~KvmVcpu() override;

    std::string_view engine_name() const override { return "kvm"; }
    VmExit run() override;
    void kick() noexcept override;
    void notify() noexcept override;
    void reset() override;
    void save(state::Encoder& to) const override;
    base::Result<void> load(state::Decoder& from) override;
    VcpuStats stats() const override { return counts_; }
    x86::CpuState& state() override;
    void state_changed() override;

    ApicImage apic() noexcept override;
    void set_apic(const ApicImage& image) noexcept override;

private:
    struct Parts; // state, system layer
    KvmVcpu(KvmMachine& machine, const x86::VcpuWiring& wiring, Descriptor fd,
            std::unique_ptr<Parts> parts);

    // creation
    base::Result<void> map_run_page();
    base::Result<void> set_cpuid();
    void find_msrs();

    // run loop (kvm_vcpu.cpp)
    std::optional<VmExit> take_events();
    std::optional<VmExit> step();
    std::optional<VmExit> handle_exit();
    VmExit leave(VmExit exit);
    void interrupt_kernel() noexcept;
    void complete_access();
    base::Result<std::optional<VmExit>> note_timer();
    std::optional<VmExit> settle_timer();
    base::Result<void> offer_external_interrupt();
    base::Result<void> inject(std::uint8_t vector);

    // exits (kvm_exits.cpp)
    void port_access();
    void mmio_access();
    void msr_access();
    VmExit internal_error();
    VmExit entry_failed() const;

    // state (kvm_vcpu_state.cpp)
    base::Result<void> push();
    base::Result<void> push_fpu();
    base::Result<void> push_msrs();
    base::Result<void> push_tsc_offset();
    base::Result<void> push_deadline();
    base::Result<void> take_deadline();
    base::Result<void> pull();
    base::Result<void> pull_fpu();
    base::Result<void> pull_msrs();
    base::Result<void> pull_events();
    base::Result<kvm_vcpu_events> get_events() const;
    base::Result<ApicImage> fetch_apic() const;
    base::Result<void> store_apic(const ApicImage& image);
    base::Result<std::uint64_t> get_msr(std::uint32_t index) const;
    base::Result<void> set_msr(std::uint32_t index, std::uint64_t value);

    KvmMachine& machine_; // outlives the vCPU
    const x86::VcpuWiring wiring_;
    const Descriptor fd_;
    std::unique_ptr<Parts> parts_;
    kvm_run* run_ = nullptr; // shared with the kernel
    std::size_t run_bytes_ = 0;
    bool has_xcrs_ = false;
    std::vector<MsrPlace> msrs_; // those that this KVM has

    bool changed_ = true;                     // state() is newer than the kernel's
    Injected injected_ = Injected::Drop;      // what of the kernel's push() leaves there
    bool access_open_ = false;                // the last exit completes at the next entry
    std::optional<std::uint64_t> tsc_offset_; // as the kernel has it
    std::uint64_t tsc_skew_ = 0; // what a KVM that takes no offset adds to the TSC by itself
    std::uint64_t tsc_hz_ = 0;   // as the kernel was told; 0: the host's
    bool timer_counted_ = false; // when the vCPU came to stand: a one-shot count was under way
    std::uint64_t deadline_ =
        0; // IA32_TSC_DEADLINE, without the skew, while the vCPU stands; 0: none

    std::atomic<pid_t> thread_{0}; // inside run(); 0 outside
    std::atomic<bool> kicked_{false};
    VcpuStats counts_;
};

/// The signal that makes a vCPU's thread leave the guest; its handler does nothing. Installed when
/// the first vCPU is made.
int kick_signal();

} // namespace doppel::cpu::kvm
