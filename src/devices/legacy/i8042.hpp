// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Keyboard controller with a PS/2 keyboard, ports 60h and 64h, and the fast-A20 port 92h (IBM PS/2
/// Hardware Interface Technical Reference, 1988: "Keyboard and auxiliary device controller").
/// Modelled: controller commands (configuration byte, self and interface tests, enable, output
/// port, CPU reset), translation of scan-code set 2 to 1, keyboard commands (identify, LEDs,
/// scan-code set, typematic rate, scanning, reset), IRQ 1, A20 gate and reset of port 92h.
/// Not modelled: the auxiliary device (an empty mouse port that times out), passwords, typematic
/// repeat, scan-code set 3's per-key commands.
#include <array>
#include <functional>
#include <span>

#include "bus/interrupt.hpp"
#include "devices/device.hpp"
#include "devices/io_range.hpp"

namespace doppel::devices {

/// Any thread; guarded by the device mutex, which is free when the board is called.
class I8042 final : public StatefulDevice<I8042> {
public:
    static constexpr std::size_t kQueueBytes = 32;

    struct State {
        std::uint8_t configuration = 0x41; // IRQ 1 on, translation on: as firmware leaves it
        std::uint8_t status = 0x18;        // bits 4:2; OBF and AUX follow from the queue
        std::uint8_t pending_command = 0;  // of the controller, waits for a byte at port 60h
        std::uint8_t keyboard_command = 0; // of the keyboard, waits for its argument
        std::uint8_t output_port = 0x03;   // bit 0: not reset, bit 1: A20
        std::uint8_t scan_code_set = 2;
        bool is_scanning = true;
        bool break_prefix = false; // translation has seen f0h
        std::uint8_t output = 0;   // last byte that port 60h showed
        std::uint8_t queue_count = 0;
        std::array<std::uint8_t, kQueueBytes> queue{};     // oldest first
        std::array<std::uint8_t, kQueueBytes> queue_aux{}; // 1: from the auxiliary port
        std::array<std::uint8_t, 32> ram{};                // byte 0 is `configuration`
        base::Result<void> validate() const;
    };
    static constexpr auto kSchema = state::schema(
        "i8042", 1, state::field(1, "configuration", &State::configuration),
        state::field(2, "status", &State::status),
        state::field(3, "pending_command", &State::pending_command),
        state::field(4, "keyboard_command", &State::keyboard_command),
        state::field(5, "output_port", &State::output_port),
        state::field(6, "scan_code_set", &State::scan_code_set),
        state::field(7, "is_scanning", &State::is_scanning),
        state::field(8, "break_prefix", &State::break_prefix),
        state::field(9, "output", &State::output),
        state::field(10, "queue_count", &State::queue_count),
        state::field(11, "queue", &State::queue), state::field(12, "queue_aux", &State::queue_aux),
        state::field(13, "ram", &State::ram));

    /// What the chip's output pins do on the board. Called on the vCPU's thread.
    struct Pins {
        std::function<void()> reset_cpu;           // the board resets
        std::function<void(bool enabled)> set_a20; // may be empty: A20 is always on then
    };
    I8042(bus::IrqLine irq1, Pins pins);

    bus::IoHandler& data() { return data_; }       // port 60h: 1 byte
    bus::IoHandler& command() { return command_; } // port 64h: 1 byte
    bus::IoHandler& port92() { return port92_; }   // port 92h: 1 byte

    void reset() override;
    /// Keyboard input in scan-code set 2, whole codes ("1c" or "f0 1c"); false when the queue has
    /// no room or the keyboard is not scanning. Any thread.
    bool send_scan_code(std::span<const std::uint8_t> code);

private:
    friend StatefulDevice<I8042>;
    enum class Action : std::uint8_t { None, ResetCpu, A20On, A20Off };
    std::uint64_t read_data(bus::IoAccess io);
    void write_data(bus::IoAccess io, std::uint64_t value);
    std::uint64_t read_status(bus::IoAccess io);
    void write_command(bus::IoAccess io, std::uint64_t value);
    std::uint64_t read_port92(bus::IoAccess io);
    void write_port92(bus::IoAccess io, std::uint64_t value);

    Action controller_command(std::uint8_t command) DOPPEL_REQUIRES(mutex_);
    Action controller_argument(std::uint8_t value) DOPPEL_REQUIRES(mutex_);
    Action set_output_port(std::uint8_t value) DOPPEL_REQUIRES(mutex_);
    void keyboard_byte(std::uint8_t value) DOPPEL_REQUIRES(mutex_);
    void keyboard_argument(std::uint8_t command, std::uint8_t value) DOPPEL_REQUIRES(mutex_);
    void set_keyboard_defaults() DOPPEL_REQUIRES(mutex_);
    void reply(std::uint8_t byte) DOPPEL_REQUIRES(mutex_) { push(byte, false); }
    void push(std::uint8_t byte, bool is_aux) DOPPEL_REQUIRES(mutex_);
    void push_scan_code(std::uint8_t byte) DOPPEL_REQUIRES(mutex_);
    void update_irq() DOPPEL_REQUIRES(mutex_);
    void perform(Action action);

    const bus::IrqLine irq1_;
    const Pins pins_;
    State state_ DOPPEL_GUARDED_BY(mutex_);
    IoRange<I8042> data_{*this, &I8042::read_data, &I8042::write_data};
    IoRange<I8042> command_{*this, &I8042::read_status, &I8042::write_command};
    IoRange<I8042> port92_{*this, &I8042::read_port92, &I8042::write_port92};
};

} // namespace doppel::devices
