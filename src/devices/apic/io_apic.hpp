// SPDX-License-Identifier: Apache-2.0
#pragma once
/// IOAPIC with 24 inputs (Intel 82093AA data sheet, 290566-001; EOI register: Intel ICH9 data sheet
/// 316972-004 §13.5.6).
/// Modelled: redirection table, masks, edge and level inputs with remote IRR, EOI by broadcast and
/// by register (version 20h), all delivery modes that a local APIC takes.
/// Not modelled: polarity (a wire here is "asserted" or not), delivery status, ExtINT delivery.
#include <array>

#include "bus/interrupt.hpp"
#include "bus/io_handler.hpp"
#include "devices/apic/apic_bus.hpp"
#include "devices/device.hpp"

namespace doppel::devices {

/// Any thread; guarded by the device mutex, a leaf: with it held only local APICs are reached,
/// which never wait.
class IoApic final : public StatefulDevice<IoApic>,
                     public bus::IoHandler,
                     public bus::IrqSink,
                     public EoiListener {
public:
    static constexpr std::uint32_t kInputs = 24;

    struct State {
        std::uint8_t select = 0; // IOREGSEL
        std::uint8_t id = 0;
        std::uint32_t levels = 0; // of the inputs
        std::array<std::uint64_t, kInputs> table{};
        State() { table.fill(1u << 16); }
    };
    static constexpr auto kSchema = state::schema(
        "io-apic", 1, state::field(1, "select", &State::select), state::field(2, "id", &State::id),
        state::field(3, "levels", &State::levels), state::field(4, "table", &State::table));

    explicit IoApic(ApicBus& bus);

    void reset() override;
    /// Mapping of 4 KiB, sizes 1 to 4, aligned.
    std::uint64_t io_read(bus::IoAccess io) override;
    void io_write(bus::IoAccess io, std::uint64_t value) override;

    void set_irq_level(std::uint32_t input, bool level) noexcept override;
    void end_of_interrupt(std::uint8_t vector) noexcept override;
    /// Tells the bus about all level-triggered inputs: when the local APICs have moved to an
    /// engine.
    void publish_routes() noexcept;

private:
    friend StatefulDevice<IoApic>;
    std::uint32_t read_register() const DOPPEL_REQUIRES(mutex_);
    void write_register(std::uint32_t value) DOPPEL_REQUIRES(mutex_);
    void write_entry(std::size_t input, bool is_high, std::uint32_t value) DOPPEL_REQUIRES(mutex_);
    void end_level(std::uint8_t vector) DOPPEL_REQUIRES(mutex_);
    /// Sends a level-triggered request that is due.
    void service_level(std::size_t input) DOPPEL_REQUIRES(mutex_);
    void send(std::uint64_t entry) DOPPEL_REQUIRES(mutex_);
    void publish(std::size_t input) const DOPPEL_REQUIRES(mutex_);
    void publish_all() const DOPPEL_REQUIRES(mutex_);
    void state_loaded() DOPPEL_REQUIRES(mutex_) { publish_all(); }

    ApicBus& bus_; // owned by the Machine
    State state_ DOPPEL_GUARDED_BY(mutex_);
};

} // namespace doppel::devices
