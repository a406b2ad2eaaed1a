// SPDX-License-Identifier: Apache-2.0
/// Acceptance and delivery of interrupts (Intel SDM Vol. 3A, Sept. 2023, §11.8).
#include "devices/apic/local_apic.hpp"

#include <algorithm>
#include <bit>

#include "devices/apic/apic_bus.hpp"
#include "devices/apic/local_apic_bits.hpp"

namespace doppel::devices {

using namespace local_apic;

namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

template <typename Bitmap> int highest_bit(const Bitmap& words) {
    for (int i = 7; i >= 0; --i)
        if (const std::uint32_t word = words[static_cast<std::size_t>(i)]; word != 0)
            return i * 32 + 31 - std::countl_zero(word);
    return -1;
}

std::uint32_t bit_of(std::uint8_t vector) { return 1u << (vector & 31); }
std::size_t word_of(std::uint8_t vector) { return vector >> 5; }

} // namespace

base::Result<void> LocalApic::State::validate() const {
    const auto mode = base & (kBaseEnable | kBaseX2apic);
    if (mode == kBaseX2apic)
        return base::fail(base::Errc::Corrupt, "local APIC: x2APIC mode of a disabled APIC");
    if (((irr[0] | isr[0]) & 0xffff) != 0)
        return base::fail(base::Errc::Corrupt, "local APIC: vectors below 16 are requested");
    return {};
}

LocalApic::LocalApic(const Config& config, ApicBus& bus, base::TimerQueue& timers,
                     const TscPort* tsc, ExternalInterruptSource* pic)
    : config_{config}, bus_{bus}, pic_{pic},
      timer_{timers, config.timer_hz, tsc,
             [this](std::uint8_t vector) { accept_vector(vector, false); }} {
    LocalApic::reset();
    bus.add(*this);
}

void LocalApic::reset() {
    base_ = kDefaultBase | kBaseEnable | (config_.is_boot_cpu ? kBaseBootCpu : 0);
    id_ = config_.id;
    events_ = 0;
    lint_levels_ = 0;
    reset_registers();
    hand_over();
}

/// What INIT, power-on and re-enabling have in common: all but id, base and the state of wires.
void LocalApic::reset_registers() noexcept {
    state_ = {};
    ldr_ = 0;
    dfr_ = ~0u;
    svr_ = 0xff;
    esr_pending_ = 0;
    for (auto& entry : lvt_)
        entry = kLvtMasked;
    for (std::size_t i = 0; i < irr_.size(); ++i)
        irr_[i] = tmr_[i] = 0;
    timer_.reset();
    update_priority();
}

/// A SIPI that came right after the INIT must survive.
void LocalApic::init_reset() noexcept {
    fetch();
    events_.fetch_and(~kEventNmi);
    reset_registers();
    hand_over();
}

void LocalApic::enter_virtual_wire_mode() {
    svr_ = 0xff | kSvrEnable;
    lvt_[kLint0] = static_cast<std::uint32_t>(DeliveryMode::ExtInt) << 8;
    lvt_[kLint1] = static_cast<std::uint32_t>(DeliveryMode::Nmi) << 8;
    hand_over();
}

// --- state ------------------------------------------------------------------------------------

void LocalApic::capture(State& copy) const {
    copy.base = base_;
    copy.id = id_;
    copy.ldr = ldr_;
    copy.dfr = dfr_;
    copy.svr = svr_;
    copy.esr_pending = esr_pending_;
    copy.lint_levels = lint_levels_;
    copy.events = events_;
    std::ranges::copy(lvt_, copy.lvt.begin());
    std::ranges::copy(irr_, copy.irr.begin());
    std::ranges::copy(tmr_, copy.tmr.begin());
    if (hosted_ != nullptr)
        take_image(hosted_->apic(), copy);
    else
        copy.timer = timer_.state();
}

base::Result<void> LocalApic::check(const State& state) const {
    if (((state.base & kBaseX2apic) != 0 && !config_.has_x2apic) ||
        (state.base & ~writable_base_bits(config_.physical_address_bits) & ~kBaseBootCpu) != 0)
        return base::fail(base::Errc::Corrupt, "local APIC: IA32_APIC_BASE has reserved bits set");
    return {};
}

void LocalApic::state_loaded() {
    spread();
    if (hosted_ == nullptr)
        timer_.set_state(state_.timer);
    hand_over();
    notify();
}

void LocalApic::spread() noexcept {
    base_ = state_.base;
    id_ = state_.id;
    ldr_ = state_.ldr;
    dfr_ = state_.dfr;
    svr_ = state_.svr;
    esr_pending_ = state_.esr_pending;
    lint_levels_ = state_.lint_levels;
    events_ = state_.events;
    std::ranges::copy(state_.lvt, lvt_.begin());
    std::ranges::copy(state_.irr, irr_.begin());
    std::ranges::copy(state_.tmr, tmr_.begin());
    update_priority();
}

// --- who is meant: any thread -----------------------------------------------------------------

bool LocalApic::is_enabled() const noexcept { return (base_.load(kRelaxed) & kBaseEnable) != 0; }
bool LocalApic::is_x2apic() const noexcept { return (base_.load(kRelaxed) & kBaseX2apic) != 0; }
bool LocalApic::is_software_enabled() const noexcept {
    return is_enabled() && (svr_.load(kRelaxed) & kSvrEnable) != 0;
}

/// In x2APIC mode the logical id follows from the id (SDM §11.12.10.2).
std::uint32_t LocalApic::x2apic_ldr() const noexcept {
    return config_.id >> 4 << 16 | 1u << (config_.id & 15);
}

bool LocalApic::is_addressed_alone(const ApicMessage& message) const noexcept {
    return is_enabled() && message.destination == id_.load(kRelaxed) &&
           message.destination != (message.is_wide ? ~0u : 0xffu);
}

bool LocalApic::is_addressed(const ApicMessage& message) const noexcept {
    if (!is_enabled())
        return false;
    if (message.destination == (message.is_wide ? ~0u : 0xffu))
        return true;
    if (message.is_logical)
        return matches_logical(message);
    return message.destination == id_.load(kRelaxed);
}

bool LocalApic::matches_logical(const ApicMessage& message) const noexcept {
    const auto destination = message.destination;
    if (is_x2apic()) {
        const auto ldr = x2apic_ldr();
        return destination >> 16 == ldr >> 16 && (destination & ldr & 0xffff) != 0;
    }
    const auto id = ldr_.load(kRelaxed) >> 24;
    if (dfr_.load(kRelaxed) >> 28 == kDfrFlat)
        return (destination & id) != 0;
    const auto cluster = destination >> 4 & 0xf;
    return (cluster == 0xf || cluster == id >> 4) && (destination & id & 0xf) != 0;
}

// --- arrival: any thread ----------------------------------------------------------------------

void LocalApic::notify() const noexcept {
    if (auto* const wakeup = wakeup_.load(std::memory_order_acquire); wakeup != nullptr)
        wakeup->notify();
}

void LocalApic::accept(const ApicMessage& message) noexcept {
    switch (message.mode) {
    case DeliveryMode::Fixed:
    case DeliveryMode::LowestPriority:
        if (is_software_enabled())
            accept_vector(message.vector, message.is_level);
        break;
    case DeliveryMode::Nmi: post_event(kEventNmi); break;
    case DeliveryMode::Init: post_event(kEventInit); break;
    case DeliveryMode::Startup: post_sipi(message.vector); break;
    default: break; // SMI, ExtINT by message: not modelled
    }
}

void LocalApic::accept_vector(std::uint8_t vector, bool is_level) noexcept {
    if (vector < 16) {
        report_error(kEsrReceiveIllegalVector);
        return;
    }
    const auto word = word_of(vector);
    if (is_level) // the mode stands before the request does
        tmr_[word].fetch_or(bit_of(vector), kRelaxed);
    else
        tmr_[word].fetch_and(~bit_of(vector), kRelaxed);
    const auto before = irr_[word].fetch_or(bit_of(vector));
    if ((before & bit_of(vector)) == 0) // else the one who set it notifies
        notify();
}

/// INIT revokes a SIPI that was meant for the time before it.
void LocalApic::post_event(std::uint32_t event) noexcept {
    if (event == kEventInit)
        events_.fetch_and(~kEventSipi);
    events_.fetch_or(event);
    notify();
}

void LocalApic::post_sipi(std::uint8_t vector) noexcept {
    auto old = events_.load();
    std::uint32_t next = 0;
    do {
        if ((old & kEventSipi) != 0)
            return;
        next = (old & (kEventInit | kEventNmi)) | kEventSipi |
               static_cast<std::uint32_t>(vector) << kSipiVectorShift;
    } while (!events_.compare_exchange_weak(old, next));
    notify();
}

void LocalApic::set_irq_level(std::uint32_t input, bool level) noexcept {
    if (input > kLint1Input)
        return;
    const std::uint32_t bit = 1u << input;
    const auto before = level ? lint_levels_.fetch_or(bit) : lint_levels_.fetch_and(~bit);
    if (!level || (before & bit) != 0)
        return;
    if (is_enabled() && hosted_ == nullptr)
        local_interrupt(input == kLint0Input ? kLint0 : kLint1);
    else if (input == kLint1Input) // the pins are INTR and NMI of a CPU without APIC
        post_event(kEventNmi);
    else
        notify();
}

/// A rising LINT input or an error, as its LVT entry says.
void LocalApic::local_interrupt(Lvt entry) noexcept {
    const auto value = lvt(entry);
    if ((value & kLvtMasked) != 0)
        return;
    const auto mode =
        entry == kError ? DeliveryMode::Fixed : static_cast<DeliveryMode>(value >> 8 & 7);
    switch (mode) {
    case DeliveryMode::Fixed: accept_vector(static_cast<std::uint8_t>(value), false); break;
    case DeliveryMode::Nmi: post_event(kEventNmi); break;
    case DeliveryMode::ExtInt: notify(); break; // the level counts
    case DeliveryMode::Init: post_event(kEventInit); break;
    default: break;
    }
}

void LocalApic::report_error(std::uint32_t bit) noexcept {
    const auto before = esr_pending_.fetch_or(bit);
    const auto vector = static_cast<std::uint8_t>(lvt(kError));
    if ((before & bit) == 0 && vector >= 16) // an illegal error vector must not recurse
        local_interrupt(kError);
}

// --- what the vCPU sees -----------------------------------------------------------------------

bool LocalApic::has_external_interrupt() const noexcept {
    if (pic_ == nullptr || (lint_levels_.load() & 1u << kLint0Input) == 0)
        return false;
    if (!is_enabled() || hosted_ != nullptr)
        return true;
    const auto value = lvt(kLint0);
    return (value & kLvtMasked) == 0 &&
           static_cast<DeliveryMode>(value >> 8 & 7) == DeliveryMode::ExtInt;
}

bool LocalApic::has_deliverable_vector() const noexcept {
    const int vector = hosted_ == nullptr ? highest_bit(irr_) : -1;
    return vector >= 0 && vector >> 4 > ppr_.load(kRelaxed) >> 4 && is_software_enabled();
}

bool LocalApic::has_event() const noexcept {
    return events_.load() != 0 || has_deliverable_vector() || has_external_interrupt();
}

bool LocalApic::intr_pending() noexcept {
    return has_deliverable_vector() || has_external_interrupt();
}

std::optional<std::uint8_t> LocalApic::acknowledge_intr() noexcept {
    if (has_deliverable_vector()) {
        // Only this thread clears IRR bits: the highest can but have risen since.
        const auto vector = static_cast<std::uint8_t>(highest_bit(irr_));
        irr_[word_of(vector)].fetch_and(~bit_of(vector));
        state_.isr[word_of(vector)] |= bit_of(vector);
        update_priority();
        return vector;
    }
    if (has_external_interrupt())
        return pic_->acknowledge();
    return std::nullopt;
}

cpu::CpuEvent LocalApic::take_event(bool nmi_blocked, bool wait_for_sipi,
                                    std::uint8_t& sipi_vector) noexcept {
    auto events = events_.load();
    if ((events & kEventInit) != 0) {
        events_.fetch_and(~kEventInit);
        return cpu::CpuEvent::Init;
    }
    if ((events & kEventNmi) != 0 && !nmi_blocked && !wait_for_sipi) {
        events_.fetch_and(~kEventNmi);
        return cpu::CpuEvent::Nmi;
    }
    if ((events & kEventSipi) == 0)
        return cpu::CpuEvent::None;
    // If an INIT has come since, the SIPI behind it is not the one that was looked at.
    const bool taken = events_.compare_exchange_strong(events, events & (kEventInit | kEventNmi));
    if (!taken || !wait_for_sipi)
        return cpu::CpuEvent::None; // dropped (SDM §9.4.3: ignored unless waiting), or look again
    sipi_vector = static_cast<std::uint8_t>(events >> kSipiVectorShift);
    return cpu::CpuEvent::Sipi;
}

/// PPR is the higher of TPR and the class of the highest vector in service (SDM §11.8.3.1).
void LocalApic::update_priority() noexcept {
    const int in_service = highest_bit(state_.isr);
    const auto service_class = static_cast<std::uint8_t>(in_service < 0 ? 0 : in_service & 0xf0);
    ppr_.store(state_.tpr >> 4 >= service_class >> 4 ? state_.tpr : service_class, kRelaxed);
}

/// TPR or ISR went down: what waited may be due now.
void LocalApic::set_cr8(std::uint8_t value) noexcept {
    state_.tpr = static_cast<std::uint8_t>(value << 4);
    update_priority();
    if (has_deliverable_vector())
        notify();
}

void LocalApic::end_of_interrupt() noexcept {
    const int highest = highest_bit(state_.isr);
    if (highest < 0)
        return;
    const auto vector = static_cast<std::uint8_t>(highest);
    state_.isr[word_of(vector)] &= ~bit_of(vector);
    update_priority();
    const bool is_level = (tmr_[word_of(vector)].load() & bit_of(vector)) != 0;
    if (is_level && (svr_.load(kRelaxed) & kSvrSuppressEoiBroadcast) == 0)
        bus_.broadcast_eoi(vector);
    if (has_deliverable_vector())
        notify();
}

} // namespace doppel::devices
