// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One VM of the kernel's: RAM as memory slots, local APICs in the kernel ("split" irqchip: PIC,
/// IOAPIC and PIT are the board's own, see docs/decisions), messages to them, doorbells.
#include <linux/kvm.h>

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/mutex.hpp"
#include "base/result.hpp"
#include "bus/doorbell.hpp"
#include "cpu/apic_host.hpp"
#include "cpu/kvm/ioctl.hpp"
#include "cpu/kvm/kvm_system.hpp"
#include "memory/guest_memory.hpp"

namespace doppel::cpu::kvm {

class KvmVcpu;

/// A write that the kernel answers by writing to an eventfd, without leaving guest code for us.
struct Doorbell {
    enum class Space : std::uint8_t { Mmio, Pio };
    Space space = Space::Mmio;
    std::uint64_t address = 0;
    std::uint32_t size_bytes = 0;         // 1, 2, 4, 8; of MMIO also 0: any
    std::optional<std::uint64_t> value{}; // only this value rings
};

/// Any thread, except where noted.
class KvmMachine final : public ApicHost, public bus::DoorbellHost, public memory::WriteLog {
public:
    static constexpr std::uint32_t kIoApicInputs = 24;

    /// Puts `memory` into the VM; it outlives the running vCPUs. Errors: the system's.
    static base::Result<std::unique_ptr<KvmMachine>> create(KvmSystem system,
                                                            memory::GuestMemory& memory);
    KvmMachine(const KvmMachine&) = delete;
    KvmMachine& operator=(const KvmMachine&) = delete;

    /// Control thread: a new vCPU's descriptor, and where HostedApic is found.
    base::Result<Descriptor> create_vcpu(unsigned index);
    void add_vcpu(unsigned index, KvmVcpu& vcpu);

    // --- interrupts ---
    void send_msi(bus::MsiMessage message) noexcept override;
    HostedApic& apic(unsigned vcpu) override;
    void set_eoi_sink(EoiSink& sink) noexcept override { eoi_sink_ = &sink; }
    void set_level_route(std::uint32_t input,
                         std::optional<bus::MsiMessage> message) noexcept override;
    void end_of_interrupt(std::uint8_t vector) noexcept;
    /// A write to `eventfd` sends `message` from now on. The GSI names it to remove_irqfd().
    base::Result<std::uint32_t> add_irqfd(int eventfd, bus::MsiMessage message);
    base::Result<void> remove_irqfd(std::uint32_t gsi, int eventfd);

    // --- doorbells ---
    base::Result<void> add_doorbell(const Doorbell& doorbell, int eventfd);
    base::Result<void> remove_doorbell(const Doorbell& doorbell, int eventfd);
    void hang(std::uint64_t address, int eventfd) noexcept override;
    void take_down(std::uint64_t address, int eventfd) noexcept override;

    // --- memory::WriteLog: control thread, vCPUs stopped ---
    void start() noexcept override;
    void stop() noexcept override;
    void collect(memory::GuestMemory& memory) noexcept override;

    /// What the host refused where nobody could be told; it ends the VM at the next run().
    std::optional<base::Error> failure() const;
    void fail_later(base::Error error) noexcept;

    const KvmSystem& system() const { return system_; }

private:
    KvmMachine(KvmSystem system, Descriptor vm, memory::GuestMemory& memory);
    base::Result<void> enable_capabilities();
    base::Result<void> filter_msrs();
    base::Result<void> set_slots(std::uint32_t flags);
    base::Result<void> call_doorbell(const Doorbell& doorbell, int eventfd, std::uint32_t flags);
    base::Result<void> update_routes() DOPPEL_REQUIRES(routes_mutex_);

    const KvmSystem system_;
    const Descriptor vm_;
    memory::GuestMemory& memory_; // of the board, which outlives the engine
    std::vector<KvmVcpu*> vcpus_;
    EoiSink* eoi_sink_ = nullptr; // the board's

    base::Mutex routes_mutex_;
    std::map<std::uint32_t, bus::MsiMessage> routes_ DOPPEL_GUARDED_BY(routes_mutex_); // by GSI

    std::atomic<bool> failed_{false};
    mutable base::Mutex failure_mutex_;
    std::optional<base::Error> failure_ DOPPEL_GUARDED_BY(failure_mutex_);
};

} // namespace doppel::cpu::kvm
