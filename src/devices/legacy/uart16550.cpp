// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/uart16550.hpp"

#include <algorithm>

namespace doppel::devices {

namespace {

enum Register : std::uint8_t { RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR };

constexpr std::uint8_t IER_ERBFI = 0x01; // received data, timeout
constexpr std::uint8_t IER_ETBEI = 0x02; // transmitter holding register empty
constexpr std::uint8_t IER_ELSI = 0x04;  // receiver line status
constexpr std::uint8_t IER_EDSSI = 0x08; // modem status

// IIR bits 3:0 in order of priority (data sheet, table 5).
constexpr std::uint8_t IIR_LINE_STATUS = 0x6;
constexpr std::uint8_t IIR_DATA = 0x4;
constexpr std::uint8_t IIR_TIMEOUT = 0xc;
constexpr std::uint8_t IIR_THRE = 0x2;
constexpr std::uint8_t IIR_MODEM = 0x0;
constexpr std::uint8_t IIR_NONE = 0x1;

constexpr std::uint8_t LSR_DR = 0x01;
constexpr std::uint8_t LSR_OE = 0x02;
constexpr std::uint8_t LSR_BI = 0x10;
constexpr std::uint8_t LSR_THRE = 0x20;
constexpr std::uint8_t LSR_TEMT = 0x40;
constexpr std::uint8_t LSR_FIFO_ERROR = 0x80;
constexpr std::uint8_t LSR_ERRORS = 0x1e;

constexpr std::uint8_t LCR_DLAB = 0x80;
constexpr std::uint8_t LCR_BREAK = 0x40;
constexpr std::uint8_t MSR_TERI = 0x04;
constexpr std::uint8_t MSR_PRESENT = 0xb0; // DCD, DSR, CTS
constexpr std::uint64_t kClockHz = 1'843'200;

} // namespace

base::Result<void> Uart16550::State::validate() const {
    if (rx_count > kFifoBytes)
        return base::fail(base::Errc::Corrupt, "UART: the receive FIFO holds more than 16 bytes");
    return {};
}

Uart16550::Uart16550(bus::IrqLine irq, chardev::ByteSink& sink, chardev::ByteSource* source,
                     base::TimerQueue& timers)
    : irq_{irq}, sink_{sink}, source_{source}, clock_{timers.clock()},
      timer_{timers.create_timer([this] { on_timeout(); })} {
    if (source_ != nullptr)
        source_->set_receiver(this);
}

Uart16550::~Uart16550() {
    if (source_ != nullptr)
        source_->set_receiver(nullptr);
}

void Uart16550::reset() {
    timer_->cancel();
    {
        const base::MutexLock lock{mutex_};
        state_ = {};
        was_full_ = false;
    }
    if (source_ != nullptr)
        source_->receiver_ready();
}

void Uart16550::pause() {
    const base::MutexLock lock{mutex_};
    is_paused_ = true;
}

void Uart16550::resume() {
    {
        const base::MutexLock lock{mutex_};
        is_paused_ = false;
    }
    if (source_ != nullptr)
        source_->receiver_ready();
}

void Uart16550::state_loaded() {
    was_full_ = true; // the source may wait: tell it when there is room
    if (state_.timeout_deadline_ns != 0)
        timer_->arm(state_.timeout_deadline_ns);
    else
        timer_->cancel();
}

// --- the guest's side -------------------------------------------------------------------------

std::uint64_t Uart16550::io_read(bus::IoAccess io) {
    std::uint8_t value = 0;
    bool call_source = false;
    {
        const base::MutexLock lock{mutex_};
        value = read_register(io.offset);
        update_irq();
        call_source = std::exchange(call_source_, false);
    }
    if (call_source && source_ != nullptr)
        source_->receiver_ready();
    return value;
}

void Uart16550::io_write(bus::IoAccess io, std::uint64_t value) {
    const auto byte = static_cast<std::uint8_t>(value);
    bool call_source = false;
    bool transmit = false;
    {
        const base::MutexLock lock{mutex_};
        write_register(io.offset, byte);
        update_irq();
        call_source = std::exchange(call_source_, false);
        transmit = std::exchange(transmit_, false);
    }
    if (transmit) {
        const auto out = static_cast<std::byte>(byte);
        sink_.write({&out, 1});
    }
    if (call_source && source_ != nullptr)
        source_->receiver_ready();
}

std::uint8_t Uart16550::read_register(std::uint64_t offset) {
    const bool dlab = (state_.lcr & LCR_DLAB) != 0;
    switch (offset) {
    case RBR_THR: return dlab ? static_cast<std::uint8_t>(state_.divisor) : read_rbr();
    case IER: return dlab ? static_cast<std::uint8_t>(state_.divisor >> 8) : state_.ier;
    case IIR_FCR: return read_iir();
    case LCR: return state_.lcr;
    case MCR: return state_.mcr;
    case LSR: return read_lsr();
    case MSR: return std::exchange(state_.msr, static_cast<std::uint8_t>(state_.msr & 0xf0));
    default: return state_.scr;
    }
}

void Uart16550::write_register(std::uint64_t offset, std::uint8_t value) {
    const bool dlab = (state_.lcr & LCR_DLAB) != 0;
    switch (offset) {
    case RBR_THR:
        if (dlab)
            state_.divisor = static_cast<std::uint16_t>((state_.divisor & 0xff00) | value);
        else
            write_thr(value);
        break;
    case IER:
        if (dlab)
            state_.divisor = static_cast<std::uint16_t>((state_.divisor & 0xff) | value << 8);
        else
            write_ier(value);
        break;
    case IIR_FCR: write_fcr(value); break;
    case LCR:
        if (is_loopback() && (value & ~state_.lcr & LCR_BREAK) != 0)
            push(0, Received::Break);
        state_.lcr = value;
        break;
    case MCR: write_mcr(value); break;
    case SCR: state_.scr = value; break;
    default: break; // LSR and MSR are for factory tests
    }
}

std::uint8_t Uart16550::read_rbr() {
    if (state_.rx_count == 0)
        return state_.rx_bytes[0]; // the register keeps its last byte
    const auto byte = state_.rx_bytes[0];
    --state_.rx_count;
    if (state_.rx_count != 0) {
        std::copy_n(state_.rx_bytes.begin() + 1, state_.rx_count, state_.rx_bytes.begin());
        std::copy_n(state_.rx_errors.begin() + 1, state_.rx_count, state_.rx_errors.begin());
    } else if (was_full_) {
        was_full_ = false;
        call_source_ = true;
    }
    restart_timeout();
    return byte;
}

/// Reading IIR acknowledges the THRE interrupt, when it is the one that IIR shows.
std::uint8_t Uart16550::read_iir() {
    const auto source = interrupt_source();
    if (source == IIR_THRE)
        state_.thre_pending = false;
    return static_cast<std::uint8_t>(source | (is_fifo_enabled() ? 0xc0 : 0));
}

std::uint8_t Uart16550::read_lsr() {
    const auto status = line_status();
    state_.overrun = false;
    if (state_.rx_count != 0)
        state_.rx_errors[0] = 0;
    return status;
}

/// The byte leaves at once, so THRE falls and rises: an edge-triggered input sees both.
void Uart16550::write_thr(std::uint8_t value) {
    state_.thre_pending = false;
    update_irq();
    if (is_loopback())
        push(value, Received::Data);
    else
        transmit_ = true;
    state_.thre_pending = true;
}

/// Enabling the THRE interrupt while the register is empty (it always is) raises it once.
void Uart16550::write_ier(std::uint8_t value) {
    if ((value & ~state_.ier & IER_ETBEI) != 0)
        state_.thre_pending = true;
    const bool newly_receiving = (value & ~state_.ier & IER_ERBFI) != 0;
    state_.ier = value & 0x0f;
    if (newly_receiving)
        restart_timeout();
}

void Uart16550::write_fcr(std::uint8_t value) {
    const bool toggled = ((value ^ state_.fcr) & 1) != 0;
    if (toggled || (value & 0x02) != 0)
        clear_receiver();
    if ((value & 1) != 0)
        state_.fcr = value & 0xc9;
    else
        state_.fcr = 0;
}

/// In loopback the modem outputs are the modem inputs: DTR→DSR, RTS→CTS, OUT1→RI, OUT2→DCD.
void Uart16550::write_mcr(std::uint8_t value) {
    const bool was_loopback = is_loopback();
    state_.mcr = value & 0x1f;
    if (!is_loopback()) {
        set_modem_inputs(MSR_PRESENT);
        call_source_ = call_source_ || was_loopback; // can_receive() was 0
        return;
    }
    const unsigned out = state_.mcr;
    set_modem_inputs(static_cast<std::uint8_t>((out & 1) << 5 | (out & 2) << 3 | (out & 0xc) << 4));
}

void Uart16550::set_modem_inputs(std::uint8_t inputs) {
    const auto changed = static_cast<std::uint8_t>(inputs ^ (state_.msr & 0xf0));
    auto delta = static_cast<std::uint8_t>(changed >> 4 & ~MSR_TERI);
    if ((changed & state_.msr & 0x40) != 0)
        delta |= MSR_TERI; // trailing edge of the ring indicator
    state_.msr = static_cast<std::uint8_t>(inputs | (state_.msr & 0x0f) | delta);
}

std::uint8_t Uart16550::line_status() const {
    std::uint8_t status = LSR_THRE | LSR_TEMT;
    if (state_.overrun)
        status |= LSR_OE;
    if (state_.rx_count == 0)
        return status;
    status |= static_cast<std::uint8_t>(LSR_DR | (state_.rx_errors[0] & LSR_ERRORS));
    const auto errors = std::span{state_.rx_errors}.first(state_.rx_count);
    if (is_fifo_enabled() && std::ranges::any_of(errors, [](auto e) { return e != 0; }))
        status |= LSR_FIFO_ERROR;
    return status;
}

std::uint8_t Uart16550::interrupt_source() const {
    if ((state_.ier & IER_ELSI) != 0 && (line_status() & LSR_ERRORS) != 0)
        return IIR_LINE_STATUS;
    if ((state_.ier & IER_ERBFI) != 0) {
        if (state_.rx_count >= trigger())
            return IIR_DATA;
        if (state_.timeout_pending)
            return IIR_TIMEOUT;
    }
    if ((state_.ier & IER_ETBEI) != 0 && state_.thre_pending)
        return IIR_THRE;
    if ((state_.ier & IER_EDSSI) != 0 && (state_.msr & 0x0f) != 0)
        return IIR_MODEM;
    return IIR_NONE;
}

// --- the receiver -----------------------------------------------------------------------------

std::size_t Uart16550::depth() const { return is_fifo_enabled() ? kFifoBytes : 1; }

std::size_t Uart16550::trigger() const {
    static constexpr std::array<std::uint8_t, 4> kLevels{1, 4, 8, 14};
    return is_fifo_enabled() ? kLevels[state_.fcr >> 6] : 1;
}

/// Start bit, 5 to 8 data bits, parity, stop bits: 16 clocks times the divisor each.
std::uint64_t Uart16550::character_ns() const {
    const unsigned lcr = state_.lcr;
    const unsigned bits = 1 + 5 + (lcr & 3) + ((lcr & 8) != 0) + 1 + ((lcr & 4) != 0);
    const std::uint64_t divisor = std::max<std::uint64_t>(state_.divisor, 1);
    return bits * divisor * 16 * 1'000'000'000 / kClockHz;
}

/// FIFO timeout: data waits and for four character times none came and none was read (data sheet
/// §8.4, "FIFO timeout interrupts").
void Uart16550::restart_timeout() {
    state_.timeout_pending = false;
    const bool wanted = is_fifo_enabled() && state_.rx_count != 0 && (state_.ier & IER_ERBFI) != 0;
    const bool was_armed = state_.timeout_deadline_ns != 0;
    state_.timeout_deadline_ns = wanted ? clock_.now_ns() + 4 * character_ns() : 0;
    if (wanted)
        timer_->arm(state_.timeout_deadline_ns);
    else if (was_armed)
        timer_->cancel();
}

void Uart16550::on_timeout() {
    const base::MutexLock lock{mutex_};
    if (state_.timeout_deadline_ns == 0 || clock_.now_ns() < state_.timeout_deadline_ns)
        return; // cancelled or moved while this call was on its way
    state_.timeout_deadline_ns = 0;
    state_.timeout_pending = true;
    update_irq();
}

/// An overrun loses the new character in FIFO mode and the old one otherwise (data sheet §8.6.4).
void Uart16550::push(std::uint8_t byte, Received what) {
    auto position = state_.rx_count;
    if (position >= depth()) {
        state_.overrun = true;
        if (is_fifo_enabled())
            return;
        position = 0;
    } else {
        ++state_.rx_count;
    }
    state_.rx_bytes[position] = byte;
    state_.rx_errors[position] = what == Received::Break ? LSR_BI : 0;
    if (state_.rx_count >= depth())
        was_full_ = true;
    restart_timeout();
}

void Uart16550::clear_receiver() {
    state_.rx_count = 0;
    restart_timeout();
    was_full_ = false;
    call_source_ = true;
}

std::size_t Uart16550::can_receive() const noexcept {
    const base::MutexLock lock{mutex_};
    if (is_paused_ || is_loopback())
        return 0;
    const auto limit = depth();
    return state_.rx_count >= limit ? 0 : limit - state_.rx_count;
}

void Uart16550::receive(std::span<const std::byte> bytes) noexcept {
    const base::MutexLock lock{mutex_};
    if (is_loopback())
        return; // the input pin is disconnected
    for (const auto byte : bytes)
        push(static_cast<std::uint8_t>(byte), Received::Data);
    update_irq();
}

void Uart16550::receive_break() noexcept {
    const base::MutexLock lock{mutex_};
    if (is_loopback())
        return;
    push(0, Received::Break);
    update_irq();
}

} // namespace doppel::devices
