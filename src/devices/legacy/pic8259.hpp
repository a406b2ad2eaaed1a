// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The PC's pair of 8259A interrupt controllers with ELCR (Intel 8259A data sheet, 231468-003;
/// ELCR: Intel 82371AB PIIX4 data sheet §8.7). The slave's output is input 2 of the master.
/// Modelled: initialisation, fully nested and special fully nested mode, automatic EOI, rotation,
/// specific and non-specific EOI, special mask, poll, edge and level inputs, spurious IR7.
/// Not modelled: buffered mode, MCS-80 vectors, a slave on another input than 2. An edge request
/// whose input falls before INTA is kept (the data sheet makes it a spurious IR7), as KVM and other
/// machines do: so a pulse is enough.
#include <array>

#include "bus/interrupt.hpp"
#include "devices/device.hpp"
#include "devices/external_interrupt.hpp"
#include "devices/io_range.hpp"

namespace doppel::devices {

/// Any thread; guarded by the device mutex, a leaf: with it held only the output wire is driven.
class Pic8259 final : public StatefulDevice<Pic8259>,
                      public bus::IrqSink,
                      public ExternalInterruptSource {
public:
    struct Chip {
        std::uint8_t lines = 0; // levels at the inputs
        std::uint8_t irr = 0;
        std::uint8_t isr = 0;
        std::uint8_t imr = 0;
        std::uint8_t elcr = 0;            // bit set: level-triggered
        std::uint8_t vector_base = 0;     // ICW2 bits 7:3
        std::uint8_t lowest_priority = 7; // rotation
        std::uint8_t init_step = 0;       // ICW expected next at offset 1: 2, 3, 4; 0 = done
        bool needs_icw4 = false;
        bool is_single = false; // ICW1 SNGL: no ICW3 comes
        bool auto_eoi = false;
        bool rotate_on_auto_eoi = false;
        bool special_fully_nested = false;
        bool special_mask = false;
        bool read_isr = false;
        bool poll = false;
        base::Result<void> validate() const;
        static constexpr auto kSchema = state::schema(
            "chip-8259", 1, state::field(1, "lines", &Chip::lines),
            state::field(2, "irr", &Chip::irr), state::field(3, "isr", &Chip::isr),
            state::field(4, "imr", &Chip::imr), state::field(5, "elcr", &Chip::elcr),
            state::field(6, "vector_base", &Chip::vector_base),
            state::field(7, "lowest_priority", &Chip::lowest_priority),
            state::field(8, "init_step", &Chip::init_step),
            state::field(9, "needs_icw4", &Chip::needs_icw4),
            state::field(10, "auto_eoi", &Chip::auto_eoi),
            state::field(11, "rotate_on_auto_eoi", &Chip::rotate_on_auto_eoi),
            state::field(12, "special_fully_nested", &Chip::special_fully_nested),
            state::field(13, "special_mask", &Chip::special_mask),
            state::field(14, "read_isr", &Chip::read_isr), state::field(15, "poll", &Chip::poll),
            state::field(16, "is_single", &Chip::is_single));
    };
    struct State {
        std::array<Chip, 2> chips{}; // master, slave
    };
    static constexpr auto kSchema =
        state::schema("pic-8259", 1, state::field(1, "chips", &State::chips));

    /// `intr` is the wire to the CPU (LINT0 of the boot CPU's local APIC).
    explicit Pic8259(bus::IrqLine intr) : intr_{intr} {}

    bus::IoHandler& master() { return master_; } // ports 20h, 21h: 2 bytes
    bus::IoHandler& slave() { return slave_; }   // ports a0h, a1h: 2 bytes
    bus::IoHandler& elcr() { return elcr_; }     // ports 4d0h, 4d1h: 2 bytes

    void reset() override;
    /// Inputs 0 to 15; 2 is the cascade and not available.
    void set_irq_level(std::uint32_t input, bool level) noexcept override;
    bool is_pending() const noexcept override;
    /// INTA cycle: always gives a vector, IR7's when the request has gone (spurious).
    std::uint8_t acknowledge() noexcept override;

private:
    friend StatefulDevice<Pic8259>;
    enum Index : std::size_t { kMaster, kSlave };
    static constexpr int kNone = -1;

    template <std::size_t I> std::uint64_t read_chip(bus::IoAccess io) { return read(I, io); }
    template <std::size_t I> void write_chip(bus::IoAccess io, std::uint64_t value) {
        write(I, io, static_cast<std::uint8_t>(value));
    }
    std::uint64_t read(std::size_t index, bus::IoAccess io);
    void write(std::size_t index, bus::IoAccess io, std::uint8_t value);
    std::uint64_t read_elcr(bus::IoAccess io);
    void write_elcr(bus::IoAccess io, std::uint64_t value);

    static void set_input(Chip& chip, unsigned input, bool level);
    static int highest(const Chip& chip, std::uint8_t requests);
    /// Input that may interrupt now, or kNone.
    static int candidate(const Chip& chip, bool is_master);
    static void accept(Chip& chip, int input);
    static void end_of_interrupt(Chip& chip, std::uint8_t command);
    static void write_command(Chip& chip, std::uint8_t value);
    static void write_data(Chip& chip, std::uint8_t value);
    /// Carries the slave's output to the master and the master's to the CPU.
    void propagate() DOPPEL_REQUIRES(mutex_);

    const bus::IrqLine intr_;
    State state_ DOPPEL_GUARDED_BY(mutex_);
    IoRange<Pic8259> master_{*this, &Pic8259::read_chip<kMaster>, &Pic8259::write_chip<kMaster>};
    IoRange<Pic8259> slave_{*this, &Pic8259::read_chip<kSlave>, &Pic8259::write_chip<kSlave>};
    IoRange<Pic8259> elcr_{*this, &Pic8259::read_elcr, &Pic8259::write_elcr};
};

} // namespace doppel::devices
