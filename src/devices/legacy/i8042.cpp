// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/i8042.hpp"

#include <algorithm>

namespace doppel::devices {

namespace {

// Status register, port 64h.
constexpr std::uint8_t kOutputFull = 0x01;
constexpr std::uint8_t kSystemFlag = 0x04;
constexpr std::uint8_t kLastWasCommand = 0x08;
constexpr std::uint8_t kNotInhibited = 0x10;
constexpr std::uint8_t kAuxOutputFull = 0x20;

// Configuration byte.
constexpr std::uint8_t kKeyboardInterrupt = 0x01;
constexpr std::uint8_t kKeyboardDisabled = 0x10;
constexpr std::uint8_t kAuxDisabled = 0x20;
constexpr std::uint8_t kTranslate = 0x40;

// Output port.
constexpr std::uint8_t kNotReset = 0x01;
constexpr std::uint8_t kA20 = 0x02;

// Port 92h.
constexpr std::uint8_t kFastReset = 0x01;
constexpr std::uint8_t kFastA20 = 0x02;

// Keyboard replies.
constexpr std::uint8_t kAck = 0xfa;
constexpr std::uint8_t kResend = 0xfe;
constexpr std::uint8_t kSelfTestPassed = 0xaa;

/// Scan-code set 2 to set 1, as the controller's ROM has it (IBM PS/2 technical reference,
/// "Keyboard scan code translation"); f0h is a prefix.
// clang-format off
constexpr std::array<std::uint8_t, 256> kSet1Of{
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
    0x80, 0x81, 0x82, 0x41, 0x54, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f,
    0x90, 0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f,
    0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf,
    0xb0, 0xb1, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xbb, 0xbc, 0xbd, 0xbe, 0xbf,
    0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xcb, 0xcc, 0xcd, 0xce, 0xcf,
    0xd0, 0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf,
    0xe0, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xeb, 0xec, 0xed, 0xee, 0xef,
    0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff,
};
// clang-format on

} // namespace

base::Result<void> I8042::State::validate() const {
    if (queue_count > kQueueBytes || scan_code_set < 1 || scan_code_set > 3)
        return base::fail(base::Errc::Corrupt, "8042: queue or scan-code set out of range");
    return {};
}

I8042::I8042(bus::IrqLine irq1, Pins pins) : irq1_{irq1}, pins_{std::move(pins)} {}

void I8042::reset() {
    const base::MutexLock lock{mutex_};
    state_ = {};
}

void I8042::perform(Action action) {
    if (action == Action::ResetCpu && pins_.reset_cpu)
        pins_.reset_cpu();
    else if (action != Action::None && action != Action::ResetCpu && pins_.set_a20)
        pins_.set_a20(action == Action::A20On);
}

// --- output buffer ----------------------------------------------------------------------------

void I8042::push(std::uint8_t byte, bool is_aux) {
    if (state_.queue_count == kQueueBytes)
        return; // the guest does not read: as a keyboard that beeps
    state_.queue[state_.queue_count] = byte;
    state_.queue_aux[state_.queue_count] = is_aux;
    ++state_.queue_count;
}

/// In translation, f0h vanishes and sets bit 7 of the code behind it.
void I8042::push_scan_code(std::uint8_t byte) {
    if ((state_.configuration & kTranslate) == 0) {
        push(byte, false);
        return;
    }
    if (byte == 0xf0) {
        state_.break_prefix = true;
        return;
    }
    push(static_cast<std::uint8_t>(kSet1Of[byte] | (state_.break_prefix ? 0x80 : 0)), false);
    state_.break_prefix = false;
}

/// IRQ 1 follows the output buffer; each byte gives an edge of its own.
void I8042::update_irq() {
    const bool full = state_.queue_count != 0 && state_.queue_aux[0] == 0;
    irq1_.set_level(full && (state_.configuration & kKeyboardInterrupt) != 0);
}

std::uint64_t I8042::read_data(bus::IoAccess) {
    const base::MutexLock lock{mutex_};
    if (state_.queue_count == 0)
        return state_.output;
    state_.output = state_.queue[0];
    --state_.queue_count;
    std::copy_n(state_.queue.begin() + 1, state_.queue_count, state_.queue.begin());
    std::copy_n(state_.queue_aux.begin() + 1, state_.queue_count, state_.queue_aux.begin());
    irq1_.set_level(false);
    update_irq();
    return state_.output;
}

std::uint64_t I8042::read_status(bus::IoAccess) {
    const base::MutexLock lock{mutex_};
    auto status = state_.status;
    if (state_.queue_count != 0)
        status |= static_cast<std::uint8_t>(kOutputFull |
                                            (state_.queue_aux[0] != 0 ? kAuxOutputFull : 0));
    return status;
}

bool I8042::send_scan_code(std::span<const std::uint8_t> code) {
    const base::MutexLock lock{mutex_};
    const bool is_open = state_.is_scanning && (state_.configuration & kKeyboardDisabled) == 0;
    if (!is_open || kQueueBytes - state_.queue_count < code.size())
        return false;
    for (const auto byte : code)
        push_scan_code(byte);
    update_irq();
    return true;
}

// --- controller -------------------------------------------------------------------------------

void I8042::write_command(bus::IoAccess, std::uint64_t value) {
    auto action = Action::None;
    {
        const base::MutexLock lock{mutex_};
        state_.status |= kLastWasCommand;
        state_.pending_command = 0;
        action = controller_command(static_cast<std::uint8_t>(value));
        update_irq();
    }
    perform(action);
}

I8042::Action I8042::controller_command(std::uint8_t command) {
    if ((command & 0xf0) == 0xf0) { // pulse output port bits that are 0
        return (command & kNotReset) == 0 ? Action::ResetCpu : Action::None;
    }
    if (command >= 0x20 && command <= 0x3f) {
        reply(command == 0x20 ? state_.configuration : state_.ram[command & 0x1f]);
        return Action::None;
    }
    switch (command) {
    case 0xa7: state_.configuration |= kAuxDisabled; break;
    case 0xa8: state_.configuration &= static_cast<std::uint8_t>(~kAuxDisabled); break;
    case 0xa9: reply(0x00); break; // auxiliary interface test passed
    case 0xaa:                     // self test
        state_.status |= kSystemFlag;
        state_.queue_count = 0;
        reply(0x55);
        break;
    case 0xab: reply(0x00); break; // keyboard interface test passed
    case 0xad: state_.configuration |= kKeyboardDisabled; break;
    case 0xae: state_.configuration &= static_cast<std::uint8_t>(~kKeyboardDisabled); break;
    case 0xc0: reply(0x80); break; // input port: keyboard not locked
    case 0xd0:
        reply(static_cast<std::uint8_t>(state_.output_port | (state_.queue_count != 0 ? 0x10 : 0)));
        break;
    case 0xd1: // output port
    case 0xd2: // byte into the keyboard's output buffer
    case 0xd3: // the same as if from the auxiliary device
    case 0xd4: // byte to the auxiliary device
        state_.pending_command = command;
        break;
    case 0xdd: return set_output_port(static_cast<std::uint8_t>(state_.output_port & ~kA20));
    case 0xdf: return set_output_port(state_.output_port | kA20);
    default:
        if (command >= 0x60 && command <= 0x7f)
            state_.pending_command = command;
        break;
    }
    return Action::None;
}

void I8042::write_data(bus::IoAccess, std::uint64_t value) {
    const auto byte = static_cast<std::uint8_t>(value);
    auto action = Action::None;
    {
        const base::MutexLock lock{mutex_};
        state_.status &= static_cast<std::uint8_t>(~kLastWasCommand);
        if (state_.pending_command != 0) {
            action = controller_argument(byte);
        } else {
            state_.configuration &= static_cast<std::uint8_t>(~kKeyboardDisabled);
            keyboard_byte(byte); // a byte to the keyboard enables its interface
        }
        update_irq();
    }
    perform(action);
}

I8042::Action I8042::controller_argument(std::uint8_t value) {
    switch (const auto command = std::exchange(state_.pending_command, std::uint8_t{0})) {
    case 0xd1: return set_output_port(value);
    case 0xd2: push(value, false); break;
    case 0xd3: push(value, true); break;
    case 0xd4: push(kResend, true); break; // nobody at the auxiliary port answers
    case 0x60:
        state_.configuration = value & 0x77;
        state_.status = static_cast<std::uint8_t>((state_.status & ~kSystemFlag) |
                                                  (value & kSystemFlag) | kNotInhibited);
        break;
    default: state_.ram[command & 0x1f] = value; break;
    }
    return Action::None;
}

I8042::Action I8042::set_output_port(std::uint8_t value) {
    const auto changed = static_cast<std::uint8_t>(state_.output_port ^ value);
    state_.output_port = value | kNotReset;
    if ((value & kNotReset) == 0)
        return Action::ResetCpu;
    if ((changed & kA20) != 0)
        return (value & kA20) != 0 ? Action::A20On : Action::A20Off;
    return Action::None;
}

std::uint64_t I8042::read_port92(bus::IoAccess) {
    const base::MutexLock lock{mutex_};
    return (state_.output_port & kA20) != 0 ? kFastA20 : 0u;
}

void I8042::write_port92(bus::IoAccess, std::uint64_t value) {
    auto action = Action::None;
    {
        const base::MutexLock lock{mutex_};
        const bool a20 = (value & kFastA20) != 0;
        action = set_output_port(static_cast<std::uint8_t>(a20 ? state_.output_port | kA20
                                                               : state_.output_port & ~kA20));
        if ((value & kFastReset) != 0)
            action = Action::ResetCpu;
    }
    perform(action);
}

// --- keyboard ---------------------------------------------------------------------------------

void I8042::set_keyboard_defaults() {
    state_.scan_code_set = 2;
    state_.keyboard_command = 0;
}

void I8042::keyboard_byte(std::uint8_t value) {
    if (const auto command = std::exchange(state_.keyboard_command, std::uint8_t{0});
        command != 0) {
        keyboard_argument(command, value);
        return;
    }
    switch (value) {
    case 0xed: // LEDs
    case 0xf0: // scan-code set
    case 0xf3: // typematic rate and delay
        state_.keyboard_command = value;
        reply(kAck);
        break;
    case 0xee: reply(0xee); break; // echo
    case 0xf2:                     // identify: MF2 keyboard; translated, 83h reads 41h
        reply(kAck);
        reply(0xab);
        reply((state_.configuration & kTranslate) != 0 ? 0x41 : 0x83);
        break;
    case 0xf4:
        state_.is_scanning = true;
        reply(kAck);
        break;
    case 0xf5: // defaults and disable
        set_keyboard_defaults();
        state_.is_scanning = false;
        reply(kAck);
        break;
    case 0xf6:
        set_keyboard_defaults();
        reply(kAck);
        break;
    case 0xfe: reply(state_.output); break; // resend
    case 0xff:                              // reset and self test
        set_keyboard_defaults();
        state_.is_scanning = true;
        reply(kAck);
        reply(kSelfTestPassed);
        break;
    default: reply(kResend); break;
    }
}

void I8042::keyboard_argument(std::uint8_t command, std::uint8_t value) {
    reply(kAck);
    if (command != 0xf0)
        return;
    if (value == 0) { // which set is it? Translated like every byte of the keyboard
        const auto set = state_.scan_code_set;
        reply((state_.configuration & kTranslate) != 0 ? kSet1Of[set] : set);
    } else if (value <= 3) {
        state_.scan_code_set = value;
    }
}

} // namespace doppel::devices
