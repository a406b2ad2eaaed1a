// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/pic8259.hpp"

#include <bit>

namespace doppel::devices {

namespace {

constexpr unsigned kCascade = 2;
constexpr std::uint8_t kInputMask = 7;

// Bits that tell the words at offset 0 apart (data sheet, figures 7 and 8).
constexpr std::uint8_t ICW1 = 0x10;
constexpr std::uint8_t ICW1_IC4 = 0x01;
constexpr std::uint8_t ICW1_SNGL = 0x02;
constexpr std::uint8_t ICW4_AEOI = 0x02;
constexpr std::uint8_t ICW4_SFNM = 0x10;
constexpr std::uint8_t OCW3 = 0x08;

// IRQs that ELCR cannot make level-triggered: timer, keyboard, cascade, RTC, coprocessor.
constexpr std::array<std::uint8_t, 2> kElcrMask{0xf8, 0xde};

std::uint8_t bit(int input) { return static_cast<std::uint8_t>(1u << input); }
void clear(std::uint8_t& mask, int input) { mask = static_cast<std::uint8_t>(mask & ~bit(input)); }

} // namespace

base::Result<void> Pic8259::Chip::validate() const {
    if (lowest_priority > 7 || init_step == 1 || init_step > 4)
        return base::fail(base::Errc::Corrupt, "8259: no such priority or initialisation step");
    return {};
}

void Pic8259::reset() {
    const base::MutexLock lock{mutex_};
    state_ = {};
}

// --- inputs -----------------------------------------------------------------------------------

void Pic8259::set_input(Chip& chip, unsigned input, bool level) {
    const auto mask = bit(static_cast<int>(input));
    const bool rose = level && (chip.lines & mask) == 0;
    if (level) {
        chip.lines |= mask;
        if (rose || (chip.elcr & mask) != 0)
            chip.irr |= mask;
    } else {
        clear(chip.lines, static_cast<int>(input));
        if ((chip.elcr & mask) != 0)
            clear(chip.irr, static_cast<int>(input));
    }
}

void Pic8259::set_irq_level(std::uint32_t input, bool level) noexcept {
    if (input > 15 || input == kCascade)
        return;
    const base::MutexLock lock{mutex_};
    set_input(state_.chips[input >> 3], input & kInputMask, level);
    propagate();
}

void Pic8259::propagate() {
    auto& [master, slave] = state_.chips;
    const bool slave_output = candidate(slave, false) != kNone;
    // The slave's output may stay up over an INTA: the cascade behaves like a level input.
    if (slave_output)
        master.irr |= 1u << kCascade;
    else
        clear(master.irr, kCascade);
    intr_.set_level(candidate(master, true) != kNone);
}

bool Pic8259::is_pending() const noexcept {
    const base::MutexLock lock{mutex_};
    return candidate(state_.chips[kMaster], true) != kNone;
}

// --- priorities -------------------------------------------------------------------------------

int Pic8259::highest(const Chip& chip, std::uint8_t requests) {
    if (requests == 0)
        return kNone;
    const int first = (chip.lowest_priority + 1) & kInputMask;
    const auto rotated = std::rotr(requests, first);
    return (std::countr_zero(rotated) + first) & kInputMask;
}

int Pic8259::candidate(const Chip& chip, bool is_master) {
    if (chip.init_step != 0)
        return kNone; // between ICW1 and the last ICW the chip does not interrupt
    const int request = highest(chip, static_cast<std::uint8_t>(chip.irr & ~chip.imr));
    if (request == kNone)
        return kNone;
    auto in_service = chip.isr;
    if (chip.special_mask)
        in_service = static_cast<std::uint8_t>(in_service & ~chip.imr);
    if (chip.special_fully_nested && is_master && request == static_cast<int>(kCascade))
        clear(in_service, kCascade); // a slave may interrupt itself (data sheet, SFNM)
    const int busy = highest(chip, in_service);
    if (busy == kNone)
        return request;
    if (chip.special_mask) // everything but the very inputs in service
        return (in_service & bit(request)) == 0 ? request : kNone;
    const auto rank = [&](int input) { return (input - chip.lowest_priority - 1) & kInputMask; };
    return rank(request) < rank(busy) ? request : kNone;
}

void Pic8259::accept(Chip& chip, int input) {
    if (chip.auto_eoi) {
        if (chip.rotate_on_auto_eoi)
            chip.lowest_priority = static_cast<std::uint8_t>(input);
    } else {
        chip.isr |= bit(input);
    }
    if ((chip.elcr & bit(input)) == 0)
        clear(chip.irr, input);
}

std::uint8_t Pic8259::acknowledge() noexcept {
    const base::MutexLock lock{mutex_};
    auto& [master, slave] = state_.chips;
    auto* chip = &master;
    int input = candidate(master, true);
    if (input == kNone) {
        input = 7; // spurious: IR7's vector, ISR stays as it is
    } else {
        accept(master, input);
        if (input == static_cast<int>(kCascade)) {
            chip = &slave;
            input = candidate(slave, false);
            if (input == kNone)
                input = 7; // the slave's spurious interrupt, IRQ 15
            else
                accept(slave, input);
        }
    }
    propagate();
    return static_cast<std::uint8_t>(chip->vector_base | input);
}

// --- registers --------------------------------------------------------------------------------

std::uint64_t Pic8259::read(std::size_t index, bus::IoAccess io) {
    const base::MutexLock lock{mutex_};
    auto& chip = state_.chips[index];
    if (chip.poll) { // the next read is an INTA of its own (data sheet, "Poll command")
        chip.poll = false;
        const int input = candidate(chip, index == kMaster);
        if (input == kNone)
            return 0;
        accept(chip, input);
        propagate();
        return 0x80u | static_cast<unsigned>(input);
    }
    if (io.offset != 0)
        return chip.imr;
    return chip.read_isr ? chip.isr : chip.irr;
}

void Pic8259::write(std::size_t index, bus::IoAccess io, std::uint8_t value) {
    const base::MutexLock lock{mutex_};
    auto& chip = state_.chips[index];
    if (io.offset == 0)
        write_command(chip, value);
    else
        write_data(chip, value);
    propagate();
}

void Pic8259::write_command(Chip& chip, std::uint8_t value) {
    if ((value & ICW1) != 0) {
        const Chip old = chip;
        chip = {};
        chip.lines = old.lines; // the wires and ELCR are not the chip's to clear
        chip.elcr = old.elcr;
        chip.irr = chip.lines & chip.elcr; // edge sense restarts: a new rise is needed
        chip.needs_icw4 = (value & ICW1_IC4) != 0;
        chip.vector_base = old.vector_base;
        chip.init_step = 2;
        chip.is_single = (value & ICW1_SNGL) != 0;
        return;
    }
    if ((value & OCW3) == 0) {
        end_of_interrupt(chip, value);
        return;
    }
    if ((value & 0x04) != 0)
        chip.poll = true;
    if ((value & 0x02) != 0)
        chip.read_isr = (value & 0x01) != 0;
    if ((value & 0x40) != 0)
        chip.special_mask = (value & 0x20) != 0;
}

/// OCW2 bits 7:5 = rotate, specific, EOI (data sheet, figure 8).
void Pic8259::end_of_interrupt(Chip& chip, std::uint8_t command) {
    const auto level = static_cast<std::uint8_t>(command & kInputMask);
    switch (command >> 5) {
    case 0: chip.rotate_on_auto_eoi = false; break;
    case 4: chip.rotate_on_auto_eoi = true; break;
    case 1:
    case 5: {
        auto in_service = chip.isr;
        if (chip.special_mask) // masked inputs are not ended by a non-specific EOI
            in_service = static_cast<std::uint8_t>(in_service & ~chip.imr);
        const int input = highest(chip, in_service);
        if (input == kNone)
            break;
        clear(chip.isr, input);
        if ((command >> 5) == 5)
            chip.lowest_priority = static_cast<std::uint8_t>(input);
        break;
    }
    case 3: clear(chip.isr, level); break;
    case 7:
        clear(chip.isr, level);
        chip.lowest_priority = level;
        break;
    case 6: chip.lowest_priority = level; break;
    default: break; // no operation
    }
    // A level input that is still up requests again.
    chip.irr |= static_cast<std::uint8_t>(chip.lines & chip.elcr);
}

void Pic8259::write_data(Chip& chip, std::uint8_t value) {
    switch (chip.init_step) {
    case 2:
        chip.vector_base = value & 0xf8;
        chip.init_step = chip.is_single ? (chip.needs_icw4 ? 4 : 0) : 3;
        break;
    case 3: // where the slave is: fixed wiring
        chip.init_step = chip.needs_icw4 ? 4 : 0;
        break;
    case 4:
        chip.auto_eoi = (value & ICW4_AEOI) != 0;
        chip.special_fully_nested = (value & ICW4_SFNM) != 0;
        chip.init_step = 0;
        break;
    default: chip.imr = value; break;
    }
}

std::uint64_t Pic8259::read_elcr(bus::IoAccess io) {
    const base::MutexLock lock{mutex_};
    return state_.chips[io.offset & 1].elcr;
}

void Pic8259::write_elcr(bus::IoAccess io, std::uint64_t value) {
    const base::MutexLock lock{mutex_};
    auto& chip = state_.chips[io.offset & 1];
    chip.elcr = static_cast<std::uint8_t>(value & kElcrMask[io.offset & 1]);
    chip.irr |= static_cast<std::uint8_t>(chip.lines & chip.elcr);
    propagate();
}

} // namespace doppel::devices
