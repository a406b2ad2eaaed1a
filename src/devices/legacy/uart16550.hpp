// SPDX-License-Identifier: Apache-2.0
#pragma once
/// 16550A serial port (National Semiconductor PC16550D data sheet, June 1995), eight registers.
/// Modelled: both FIFOs' registers, receive FIFO with trigger levels and character timeout, all
/// interrupts with their priorities, loopback, break, overrun, modem status.
/// Not modelled: the time a character takes to leave (the transmitter is always empty again at
/// once), parity and framing errors, and the PC's wiring of OUT2 as an interrupt gate.
#include <array>
#include <memory>

#include "base/clock.hpp"
#include "bus/interrupt.hpp"
#include "bus/io_handler.hpp"
#include "chardev/backend.hpp"
#include "devices/device.hpp"

namespace doppel::devices {

/// Any thread; guarded by the device mutex, which is free when sink and source are called.
class Uart16550 final : public StatefulDevice<Uart16550>,
                        public bus::IoHandler,
                        public chardev::ByteReceiver {
public:
    static constexpr std::size_t kFifoBytes = 16;

    struct State {
        std::uint16_t divisor = 1; // of 115200 baud
        std::uint8_t ier = 0;
        std::uint8_t fcr = 0; // bits 0, 3, 7:6
        std::uint8_t lcr = 0;
        std::uint8_t mcr = 0;
        std::uint8_t msr = 0xb0; // DCD, DSR, CTS: somebody is there; bits 3:0 are deltas
        std::uint8_t scr = 0;
        bool overrun = false;
        bool thre_pending = false; // the THR became empty and IIR has not said so yet
        bool timeout_pending = false;
        std::uint64_t timeout_deadline_ns = 0; // 0: no character waits for the timeout
        std::uint8_t rx_count = 0;
        std::array<std::uint8_t, kFifoBytes> rx_bytes{};  // oldest first
        std::array<std::uint8_t, kFifoBytes> rx_errors{}; // LSR bits 4:2 of that character
        base::Result<void> validate() const;
    };
    static constexpr auto kSchema =
        state::schema("uart-16550", 1, state::field(1, "divisor", &State::divisor),
                      state::field(2, "ier", &State::ier), state::field(3, "fcr", &State::fcr),
                      state::field(4, "lcr", &State::lcr), state::field(5, "mcr", &State::mcr),
                      state::field(6, "msr", &State::msr), state::field(7, "scr", &State::scr),
                      state::field(8, "overrun", &State::overrun),
                      state::field(9, "thre_pending", &State::thre_pending),
                      state::field(10, "timeout_pending", &State::timeout_pending),
                      state::field(11, "timeout_deadline_ns", &State::timeout_deadline_ns),
                      state::field(12, "rx_count", &State::rx_count),
                      state::field(13, "rx_bytes", &State::rx_bytes),
                      state::field(14, "rx_errors", &State::rx_errors));

    /// `source` may be null (no input), else the device is its receiver as long as it lives. All
    /// outlive the device.
    Uart16550(bus::IrqLine irq, chardev::ByteSink& sink, chardev::ByteSource* source,
              base::TimerQueue& timers);
    ~Uart16550() override;

    void reset() override;
    /// Input waits in the source meanwhile.
    void pause() override;
    void resume() override;
    std::uint64_t io_read(bus::IoAccess io) override;
    void io_write(bus::IoAccess io, std::uint64_t value) override;

    std::size_t can_receive() const noexcept override;
    void receive(std::span<const std::byte> bytes) noexcept override;
    /// The other side holds the line low for longer than a character.
    void receive_break() noexcept;

private:
    friend StatefulDevice<Uart16550>;
    enum class Received : std::uint8_t { Data, Break };

    std::uint8_t read_register(std::uint64_t offset) DOPPEL_REQUIRES(mutex_);
    void write_register(std::uint64_t offset, std::uint8_t value) DOPPEL_REQUIRES(mutex_);
    std::uint8_t read_rbr() DOPPEL_REQUIRES(mutex_);
    std::uint8_t read_iir() DOPPEL_REQUIRES(mutex_);
    std::uint8_t read_lsr() DOPPEL_REQUIRES(mutex_);
    void write_thr(std::uint8_t value) DOPPEL_REQUIRES(mutex_);
    void write_ier(std::uint8_t value) DOPPEL_REQUIRES(mutex_);
    void write_fcr(std::uint8_t value) DOPPEL_REQUIRES(mutex_);
    void write_mcr(std::uint8_t value) DOPPEL_REQUIRES(mutex_);

    std::uint8_t line_status() const DOPPEL_REQUIRES(mutex_);
    std::uint8_t interrupt_source() const DOPPEL_REQUIRES(mutex_); // IIR bits 3:0
    void set_modem_inputs(std::uint8_t inputs) DOPPEL_REQUIRES(mutex_);
    void push(std::uint8_t byte, Received what) DOPPEL_REQUIRES(mutex_);
    void clear_receiver() DOPPEL_REQUIRES(mutex_);
    void restart_timeout() DOPPEL_REQUIRES(mutex_);
    std::size_t depth() const DOPPEL_REQUIRES(mutex_);
    std::size_t trigger() const DOPPEL_REQUIRES(mutex_);
    std::uint64_t character_ns() const DOPPEL_REQUIRES(mutex_);
    bool is_fifo_enabled() const DOPPEL_REQUIRES(mutex_) { return (state_.fcr & 1) != 0; }
    bool is_loopback() const DOPPEL_REQUIRES(mutex_) { return (state_.mcr & 0x10) != 0; }
    void update_irq() DOPPEL_REQUIRES(mutex_) { irq_.set_level((interrupt_source() & 1) == 0); }
    void on_timeout();
    void state_loaded() DOPPEL_REQUIRES(mutex_);

    const bus::IrqLine irq_;
    chardev::ByteSink& sink_;     // owned by the Machine
    chardev::ByteSource* source_; // owned by the Machine, may be null
    const base::Clock& clock_;
    State state_ DOPPEL_GUARDED_BY(mutex_);
    bool is_paused_ DOPPEL_GUARDED_BY(mutex_) = false;
    bool was_full_ DOPPEL_GUARDED_BY(mutex_) = false;    // the source waits to be called
    bool call_source_ DOPPEL_GUARDED_BY(mutex_) = false; // after unlocking
    bool transmit_ DOPPEL_GUARDED_BY(mutex_) = false;    // after unlocking
    std::unique_ptr<base::Timer> timer_;                 // last: its callback uses all of the above
};

} // namespace doppel::devices
