// SPDX-License-Identifier: Apache-2.0
/// Registers of the local APIC, by MMIO (Intel SDM Vol. 3A, Sept. 2023, §11.4.1) and by MSR
/// (§11.12.1). vCPU thread only.
#include "devices/apic/apic_bus.hpp"
#include "devices/apic/local_apic.hpp"
#include "devices/apic/local_apic_bits.hpp"

namespace doppel::devices {

using namespace local_apic;

namespace {

/// ICR bits that can be written; bit 12 (delivery status) is always idle here.
constexpr std::uint32_t kIcrBits = 0x000c'cfff;

} // namespace

// --- IA32_APIC_BASE ---------------------------------------------------------------------------

/// Allowed changes of mode (SDM figure 11-24): disabled ↔ xAPIC → x2APIC → disabled.
bool LocalApic::write_base(std::uint64_t value) noexcept {
    const auto old = base_.load();
    if ((value & ~writable_base_bits(config_.physical_address_bits) & ~kBaseBootCpu) != 0)
        return false;
    const auto mode_of = [](std::uint64_t base) { return base & (kBaseEnable | kBaseX2apic); };
    const auto from = mode_of(old);
    const auto to = mode_of(value);
    constexpr auto kX2apic = kBaseEnable | kBaseX2apic;
    if (to == kBaseX2apic || ((to & kBaseX2apic) != 0 && !config_.has_x2apic))
        return false;
    if ((from == kX2apic && to == kBaseEnable) || (from == 0 && to == kX2apic))
        return false;
    if (to == 0 && from != 0) { // the state is lost (SDM §11.4.3)
        reset_registers();
        id_ = config_.id;
    }
    if (to == kX2apic && from != kX2apic) {
        id_ = config_.id;
        state_.icr = 0;
    }
    base_ = (value & ~kBaseBootCpu) | (old & kBaseBootCpu);
    return true;
}

std::uint64_t LocalApic::mmio_page() const noexcept {
    const auto base = base_.load(std::memory_order_relaxed);
    if ((base & (kBaseEnable | kBaseX2apic)) != kBaseEnable)
        return UINT64_MAX;
    return base & ~0xfffull;
}

// --- MMIO -------------------------------------------------------------------------------------

std::uint32_t LocalApic::mmio_read(std::uint32_t offset) noexcept {
    if ((offset & 0xf) != 0 || offset >= 0x1000)
        return 0; // registers are 16 bytes apart; between them is nothing
    const auto index = offset >> 4;
    switch (index) {
    case ID: return id_.load() << 24;
    case LDR: return ldr_.load();
    case DFR: return dfr_.load();
    case ICR_HIGH: return static_cast<std::uint32_t>(state_.icr >> 32);
    default: return read_register(index);
    }
}

void LocalApic::mmio_write(std::uint32_t offset, std::uint32_t value) noexcept {
    if ((offset & 0xf) != 0 || offset >= 0x1000)
        return;
    const auto index = offset >> 4;
    switch (index) {
    case ID: id_ = value >> 24; break;
    case LDR: ldr_ = value & 0xff00'0000; break;
    case DFR: dfr_ = value | 0x0fff'ffff; break;
    case ICR_HIGH:
        state_.icr = (state_.icr & 0xffff'ffff) | std::uint64_t{value & 0xff00'0000} << 32;
        break;
    case ICR_LOW:
        state_.icr = (state_.icr & ~0xffff'ffffull) | (value & kIcrBits);
        send_ipi(state_.icr);
        break;
    default:
        if (!write_register(index, value))
            report_error(kEsrIllegalRegister);
    }
}

// --- MSRs -------------------------------------------------------------------------------------

std::optional<std::uint64_t> LocalApic::read_msr(std::uint32_t index) noexcept {
    if (index == IA32_APIC_BASE)
        return base_.load();
    if (index == IA32_TSC_DEADLINE && timer_.has_tsc_deadline())
        return timer_.tsc_deadline();
    if (!is_x2apic() || index < kX2apicMsrs || index > kX2apicMsrs + SELF_IPI)
        return std::nullopt;
    switch (const auto number = index - kX2apicMsrs) {
    case ID: return id_.load();
    case LDR: return x2apic_ldr();
    case ICR_LOW: return state_.icr;
    case APR:
    case RRD:
    case DFR:
    case ICR_HIGH:
    case EOI:
    case SELF_IPI: return std::nullopt; // absent or write-only (SDM table 11-6)
    case VERSION:
    case TPR:
    case PPR:
    case SVR:
    case ESR: return read_register(number);
    default:
        if ((number >= ISR0 && number < ESR) || (number >= LVT_TIMER && number <= CURRENT_COUNT) ||
            number == DIVIDE)
            return read_register(number);
        return std::nullopt;
    }
}

bool LocalApic::write_msr(std::uint32_t index, std::uint64_t value) noexcept {
    if (index == IA32_APIC_BASE)
        return write_base(value);
    if (index == IA32_TSC_DEADLINE && timer_.has_tsc_deadline()) {
        timer_.set_tsc_deadline(value);
        return true;
    }
    if (!is_x2apic() || index < kX2apicMsrs || index > kX2apicMsrs + SELF_IPI)
        return false;
    return write_x2apic(index - kX2apicMsrs, value);
}

/// Reserved bits and read-only registers are #GP(0) here, where MMIO ignores them.
bool LocalApic::write_x2apic(std::uint32_t index, std::uint64_t value) noexcept {
    if (index == ICR_LOW) {
        if ((value & 0xffff'ffff & ~std::uint64_t{kIcrBits}) != 0)
            return false;
        state_.icr = value;
        send_ipi(value);
        return true;
    }
    const auto low = static_cast<std::uint32_t>(value);
    if (value >> 32 != 0)
        return false;
    switch (index) {
    case EOI:
    case ESR:
        if (low != 0)
            return false;
        break;
    case TPR:
        if (low > 0xff)
            return false;
        break;
    case SVR:
        if ((low & ~kSvrBits) != 0)
            return false;
        break;
    case LVT_TIMER:
        if ((low & ~timer_.lvt_mask()) != 0)
            return false;
        break;
    case LVT_THERMAL:
    case LVT_PERFORMANCE:
    case LVT_LINT0:
    case LVT_LINT1:
    case LVT_ERROR: // delivery status and remote IRR are read-only, not reserved
        if ((low & ~(kLvtBits[index - LVT_THERMAL] | 0x5000u)) != 0)
            return false;
        break;
    case DIVIDE:
        if ((low & ~0x0bu) != 0)
            return false;
        break;
    case SELF_IPI:
        if (low > 0xff)
            return false;
        send_ipi(std::uint64_t{1} << 18 | low);
        return true;
    default: break;
    }
    return write_register(index, low);
}

// --- what both have in common -----------------------------------------------------------------

std::uint32_t LocalApic::read_register(std::uint32_t index) noexcept {
    if (index >= ISR0 && index < TMR0)
        return state_.isr[index - ISR0];
    if (index >= TMR0 && index < IRR0)
        return tmr_[index - TMR0].load();
    if (index >= IRR0 && index < ESR)
        return irr_[index - IRR0].load();
    switch (index) {
    case VERSION: return kVersion;
    case TPR: return state_.tpr;
    case PPR: return ppr_.load();
    case SVR: return svr_.load();
    case ESR: return state_.esr;
    case ICR_LOW: return static_cast<std::uint32_t>(state_.icr);
    case LVT_TIMER: return timer_.lvt();
    case LVT_THERMAL:
    case LVT_PERFORMANCE:
    case LVT_LINT0:
    case LVT_LINT1:
    case LVT_ERROR: return lvt(static_cast<Lvt>(index - LVT_THERMAL));
    case INITIAL_COUNT: return timer_.initial_count();
    case CURRENT_COUNT: return timer_.current_count();
    case DIVIDE: return timer_.divide();
    default: return 0;
    }
}

/// False when there is no such register or it cannot be written.
bool LocalApic::write_register(std::uint32_t index, std::uint32_t value) noexcept {
    switch (index) {
    case TPR:
        state_.tpr = static_cast<std::uint8_t>(value);
        update_priority();
        if (has_deliverable_vector())
            notify();
        return true;
    case EOI: end_of_interrupt(); return true;
    case SVR: write_svr(value); return true;
    case ESR: // a write shows what happened since the last one
        state_.esr = esr_pending_.exchange(0);
        return true;
    case LVT_TIMER: write_lvt_timer(value); return true;
    case LVT_THERMAL:
    case LVT_PERFORMANCE:
    case LVT_LINT0:
    case LVT_LINT1:
    case LVT_ERROR: write_lvt(static_cast<Lvt>(index - LVT_THERMAL), value); return true;
    case INITIAL_COUNT: timer_.set_initial_count(value); return true;
    case DIVIDE: timer_.set_divide(static_cast<std::uint8_t>(value)); return true;
    default: return false;
    }
}

/// Disabled by software, all LVT entries are masked and stay so (SDM §11.4.7.2).
void LocalApic::write_svr(std::uint32_t value) noexcept {
    svr_ = value & kSvrBits;
    if ((value & kSvrEnable) != 0) {
        if (intr_pending())
            notify();
        return;
    }
    for (auto& entry : lvt_)
        entry.fetch_or(kLvtMasked);
    timer_.mask();
}

void LocalApic::write_lvt(Lvt entry, std::uint32_t value) noexcept {
    value &= kLvtBits[entry];
    if (!is_software_enabled())
        value |= kLvtMasked;
    lvt_[entry] = value;
    if (has_external_interrupt())
        notify();
}

void LocalApic::write_lvt_timer(std::uint32_t value) noexcept {
    timer_.set_lvt(is_software_enabled() ? value : value | kLvtMasked);
}

/// ICR (SDM figure 11-12): vector 7:0, delivery mode 10:8, logical 11, assert 14, level 15,
/// shorthand 19:18, destination 63:56 or, in x2APIC mode, 63:32.
void LocalApic::send_ipi(std::uint64_t icr) noexcept {
    ApicMessage message;
    message.is_wide = is_x2apic();
    message.destination = static_cast<std::uint32_t>(icr >> (message.is_wide ? 32 : 56));
    message.is_logical = (icr & 1u << 11) != 0;
    message.mode = static_cast<DeliveryMode>(icr >> 8 & 7);
    message.vector = static_cast<std::uint8_t>(icr);
    const bool is_vectored =
        message.mode == DeliveryMode::Fixed || message.mode == DeliveryMode::LowestPriority;
    if (is_vectored && message.vector < 16) {
        report_error(kEsrSendIllegalVector);
        return;
    }
    const bool is_deassert = (icr & 1u << 14) == 0 && (icr & 1u << 15) != 0;
    if (message.mode == DeliveryMode::Init && is_deassert)
        return; // INIT level de-assert: Pentium and later ignore it
    switch (icr >> 18 & 3) {
    case 0: bus_.deliver(message); break;
    case 1: // self: fixed by SDM table 11-3; NMI works on real CPUs, and test kernels use it
        if (message.mode == DeliveryMode::Fixed || message.mode == DeliveryMode::Nmi)
            accept(message);
        break;
    case 2: bus_.deliver_to_all(message, nullptr); break;
    default: bus_.deliver_to_all(message, this); break;
    }
}

} // namespace doppel::devices
