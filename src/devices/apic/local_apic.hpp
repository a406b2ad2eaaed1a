// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Local APIC of one vCPU (Intel SDM Vol. 3A, Sept. 2023, chapter 11): xAPIC registers by MMIO,
/// x2APIC registers by MSR.
/// Modelled: IRR, ISR, TMR, priorities, EOI with broadcast and its suppression, ICR with all
/// delivery modes and shorthands, flat, cluster and x2APIC destinations, LVT timer, LINT0 and
/// LINT1, error LVT and ESR, software and hardware disable, INIT, SIPI, self-IPI.
/// Not modelled: SMI, remote read, thermal and performance interrupts (their LVTs hold values),
/// level-triggered LINT inputs in fixed mode (taken as edges).
///
/// Threads. Senders run anywhere and never wait: accept() and the LINT inputs only touch atomics
/// and then call Wakeup::notify(). Acknowledge, EOI and registers belong to the vCPU's thread.
/// The pairing that loses no interrupt: a sender sets IRR (seq_cst) and then notifies; the vCPU
/// clears its notification and then reads IRR.
#include <array>
#include <atomic>

#include "bus/interrupt.hpp"
#include "cpu/apic_host.hpp"
#include "cpu/interrupt_port.hpp"
#include "devices/apic/apic_message.hpp"
#include "devices/apic/apic_timer.hpp"
#include "devices/device.hpp"
#include "devices/external_interrupt.hpp"

namespace doppel::devices {

class ApicBus;

class LocalApic final : public StatefulDevice<LocalApic>,
                        public cpu::InterruptPort,
                        public bus::IrqSink {
public:
    enum Lvt : std::size_t { kThermal, kPerformance, kLint0, kLint1, kError, kLvtCount };
    static constexpr std::uint32_t kLint0Input = 0, kLint1Input = 1; // as IrqSink

    struct Config {
        std::uint32_t id = 0;
        bool is_boot_cpu = false;
        bool has_x2apic = true;
        std::uint8_t physical_address_bits = 40;
        std::uint64_t timer_hz = 1'000'000'000; // before the divider
    };

    /// What changes hands between threads lives in atomics; here it is as of the last save or load.
    struct State {
        std::uint64_t base = 0; // IA32_APIC_BASE
        std::uint32_t id = 0;   // 32-bit form; the xAPIC register shows the low byte
        std::uint32_t ldr = 0;  // xAPIC form
        std::uint32_t dfr = ~0u;
        std::uint32_t svr = 0xff;
        std::uint8_t tpr = 0;
        std::uint64_t icr = 0;
        std::uint32_t esr = 0;         // as the guest reads it
        std::uint32_t esr_pending = 0; // since the last write to ESR
        std::uint32_t lint_levels = 0; // bit n: LINTn is up
        std::uint32_t events = 0;      // kEvent… bits
        std::array<std::uint32_t, kLvtCount> lvt{0x1'0000, 0x1'0000, 0x1'0000, 0x1'0000, 0x1'0000};
        std::array<std::uint32_t, 8> irr{};
        std::array<std::uint32_t, 8> isr{};
        std::array<std::uint32_t, 8> tmr{};
        ApicTimer::State timer;
        base::Result<void> validate() const;
    };
    static constexpr auto kSchema = state::schema(
        "local-apic", 1, state::field(1, "base", &State::base), state::field(2, "id", &State::id),
        state::field(3, "ldr", &State::ldr), state::field(4, "dfr", &State::dfr),
        state::field(5, "svr", &State::svr), state::field(6, "tpr", &State::tpr),
        state::field(7, "icr", &State::icr), state::field(8, "esr", &State::esr),
        state::field(9, "esr_pending", &State::esr_pending),
        state::field(10, "lint_levels", &State::lint_levels),
        state::field(11, "events", &State::events), state::field(12, "lvt", &State::lvt),
        state::field(13, "irr", &State::irr), state::field(14, "isr", &State::isr),
        state::field(15, "tmr", &State::tmr), state::field(16, "timer", &State::timer));

    /// `pic` answers ExtINT (may be null); `tsc` null means no TSC-deadline mode.
    LocalApic(const Config& config, ApicBus& bus, base::TimerQueue& timers, const TscPort* tsc,
              ExternalInterruptSource* pic);

    // --- board, before vCPUs run ---

    /// Whom to notify; set before the vCPU runs, null before it dies.
    void attach(cpu::Wakeup* wakeup) { wakeup_.store(wakeup, std::memory_order_release); }
    /// From now on the registers, the timer and delivery are the engine's: this chip keeps the
    /// wires (LINT0 is INTR of the PIC, whatever the LVT says: the engine knows that), and fetches
    /// and hands over the registers when the chip is saved, loaded and reset.
    void host_in(cpu::HostedApic& engine);
    void reset() override;
    /// As firmware leaves the boot CPU: enabled, LINT0 = ExtINT, LINT1 = NMI (MultiProcessor
    /// Specification 1.4 §3.6.2.2).
    void enter_virtual_wire_mode();

    // --- any thread, lock-free ---

    /// An addressed message arrives (IPI, MSI, IOAPIC).
    void accept(const ApicMessage& message) noexcept;
    /// LINT0 and LINT1.
    void set_irq_level(std::uint32_t input, bool level) noexcept override;
    void raise_nmi() noexcept { post_event(kEventNmi); }

    bool is_enabled() const noexcept;          // IA32_APIC_BASE
    bool is_software_enabled() const noexcept; // both enables
    bool is_x2apic() const noexcept;
    bool is_addressed(const ApicMessage& message) const noexcept;
    /// A physical message that can be for this CPU only, by its id.
    bool is_addressed_alone(const ApicMessage& message) const noexcept;
    std::uint8_t priority() const noexcept { return ppr_.load(std::memory_order_relaxed); }
    std::uint32_t initial_id() const noexcept { return config_.id; }

    // --- InterruptPort: vCPU thread, has_event() any thread ---

    bool has_event() const noexcept override;
    bool intr_pending() noexcept override;
    std::optional<std::uint8_t> acknowledge_intr() noexcept override;
    cpu::CpuEvent take_event(bool nmi_blocked, bool wait_for_sipi,
                             std::uint8_t& sipi_vector) noexcept override;
    std::uint8_t cr8() const noexcept override { return state_.tpr >> 4; }
    void set_cr8(std::uint8_t value) noexcept override;
    std::optional<std::uint64_t> read_msr(std::uint32_t index) noexcept override;
    bool write_msr(std::uint32_t index, std::uint64_t value) noexcept override;
    std::uint64_t mmio_page() const noexcept override;
    std::uint32_t mmio_read(std::uint32_t offset) noexcept override;
    void mmio_write(std::uint32_t offset, std::uint32_t value) noexcept override;
    void init_reset() noexcept override;

private:
    friend StatefulDevice<LocalApic>;
    using Bitmap = std::array<std::atomic<std::uint32_t>, 8>;
    static constexpr std::uint32_t kEventInit = 1, kEventNmi = 2, kEventSipi = 4;
    static constexpr unsigned kSipiVectorShift = 8;

    // delivery (local_apic.cpp)
    void accept_vector(std::uint8_t vector, bool is_level) noexcept;
    void post_event(std::uint32_t event) noexcept;
    void post_sipi(std::uint8_t vector) noexcept;
    void report_error(std::uint32_t bit) noexcept;
    void local_interrupt(Lvt entry) noexcept;
    void notify() const noexcept;
    bool matches_logical(const ApicMessage& message) const noexcept;
    bool has_external_interrupt() const noexcept;
    bool has_deliverable_vector() const noexcept;
    std::uint32_t x2apic_ldr() const noexcept;
    void update_priority() noexcept;
    void end_of_interrupt() noexcept;
    void reset_registers() noexcept;
    void spread() noexcept; // state_ to the atomics
    void capture(State& copy) const;
    base::Result<void> check(const State& state) const;
    void state_loaded();

    // another one's registers (local_apic_image.cpp)
    cpu::ApicImage image_of(const State& state) const noexcept;
    void take_image(const cpu::ApicImage& image, State& state) const noexcept;
    void fetch() noexcept;     // what a hosted one has becomes what this one has
    void hand_over() noexcept; // and the other way

    // registers (local_apic_registers.cpp)
    std::uint32_t read_register(std::uint32_t index) noexcept; // offset / 16
    bool write_register(std::uint32_t index, std::uint32_t value) noexcept;
    bool write_x2apic(std::uint32_t index, std::uint64_t value) noexcept;
    bool write_base(std::uint64_t value) noexcept;
    void write_svr(std::uint32_t value) noexcept;
    void write_lvt(Lvt entry, std::uint32_t value) noexcept;
    void write_lvt_timer(std::uint32_t value) noexcept;
    void send_ipi(std::uint64_t icr) noexcept;
    std::uint32_t lvt(Lvt entry) const noexcept {
        return lvt_[entry].load(std::memory_order_relaxed);
    }

    const Config config_;
    ApicBus& bus_;                       // owned by the Machine
    ExternalInterruptSource* const pic_; // the same, may be null
    cpu::HostedApic* hosted_ = nullptr;  // of the engine, which outlives its use; null: it is here
    std::atomic<cpu::Wakeup*> wakeup_{nullptr};

    // Written by the vCPU's thread, read by senders to see whether a message is for this CPU.
    std::atomic<std::uint64_t> base_{0};
    std::atomic<std::uint32_t> id_{0};
    std::atomic<std::uint32_t> ldr_{0};
    std::atomic<std::uint32_t> dfr_{~0u};
    std::atomic<std::uint32_t> svr_{0xff};
    std::atomic<std::uint8_t> ppr_{0};
    std::array<std::atomic<std::uint32_t>, kLvtCount> lvt_{};
    // Written by senders, too.
    Bitmap irr_{};
    Bitmap tmr_{};
    std::atomic<std::uint32_t> events_{0};
    std::atomic<std::uint32_t> lint_levels_{0};
    std::atomic<std::uint32_t> esr_pending_{0};

    State state_; // vCPU's thread (or paused VM): tpr, icr, esr, isr; the rest is a copy
    ApicTimer timer_;
};

} // namespace doppel::devices
