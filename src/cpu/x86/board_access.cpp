// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/board_access.hpp"

#include <sched.h>

#include "base/verify.hpp"

namespace doppel::cpu::x86 {

namespace {

constexpr std::uint64_t kPage = 4096;

/// The xAPIC has 32-bit registers at 16-byte steps; a narrower or wider access is taken apart.
std::uint64_t read_apic(InterruptPort& apic, std::uint32_t offset, std::uint8_t size) {
    std::uint64_t value = apic.mmio_read(offset & ~3u);
    if ((offset & 3) + size > 4)
        value |= std::uint64_t{apic.mmio_read((offset & ~3u) + 4)} << 32;
    value >>= (offset & 3) * 8;
    return size == 8 ? value : value & ((std::uint64_t{1} << size * 8) - 1);
}

} // namespace

RamView view_of(const memory::GuestMemory& memory) {
    RamView view;
    for (const auto& region : memory.engine_regions()) {
        DOPPEL_VERIFY(view.count < RamView::kMaxRegions, "guest RAM has at most 8 regions");
        view.regions[view.count++] = {region.base.value, region.size_bytes, region.host,
                                      region.states};
    }
    return view;
}

std::uint64_t WiredBoard::mmio_read(std::uint64_t gpa, std::uint8_t size) noexcept {
    ++mmio_accesses_;
    if ((gpa & ~(kPage - 1)) == wiring_.interrupts->mmio_page())
        return read_apic(*wiring_.interrupts, static_cast<std::uint32_t>(gpa % kPage), size);
    return wiring_.mmio->read(gpa, size);
}

void WiredBoard::mmio_write(std::uint64_t gpa, std::uint8_t size, std::uint64_t value) noexcept {
    ++mmio_accesses_;
    if ((gpa & ~(kPage - 1)) != wiring_.interrupts->mmio_page())
        return wiring_.mmio->write(gpa, size, value);
    // Only aligned 32-bit writes are defined (Intel SDM Vol. 3A §11.4.1); others are dropped.
    if (size == 4 && gpa % 4 == 0)
        wiring_.interrupts->mmio_write(static_cast<std::uint32_t>(gpa % kPage),
                                       static_cast<std::uint32_t>(value));
}

std::uint64_t WiredBoard::pio_read(std::uint16_t port, std::uint8_t size) noexcept {
    ++pio_accesses_;
    return wiring_.pio->read(port, size);
}

void WiredBoard::pio_write(std::uint16_t port, std::uint8_t size, std::uint64_t value) noexcept {
    ++pio_accesses_;
    wiring_.pio->write(port, size, value);
}

bool WiredBoard::prepare_ram_write(std::uint64_t gpa, std::uint64_t bytes) noexcept {
    return wiring_.memory->prepare_engine_write({gpa}, bytes);
}

void WiredBoard::finish_ram_write(std::uint64_t gpa, std::uint64_t bytes) noexcept {
    wiring_.memory->finish_engine_write({gpa}, bytes);
}

void WiredBoard::exclusive(void (*work)(void*), void* argument) noexcept {
    if (others_ == nullptr)
        return work(argument);
    others_->exclusive(*self_, [=] { work(argument); });
}

bool WiredBoard::read_msr(std::uint32_t index, std::uint64_t& value) noexcept {
    auto found = wiring_.interrupts->read_msr(index);
    if (!found && wiring_.msrs != nullptr)
        found = wiring_.msrs->read_msr(wiring_.index, index);
    value = found.value_or(0);
    return found.has_value();
}

bool WiredBoard::write_msr(std::uint32_t index, std::uint64_t value) noexcept {
    return wiring_.interrupts->write_msr(index, value) ||
           (wiring_.msrs != nullptr && wiring_.msrs->write_msr(wiring_.index, index, value));
}

std::uint8_t WiredBoard::cr8() noexcept { return wiring_.interrupts->cr8(); }
void WiredBoard::set_cr8(std::uint8_t value) noexcept { wiring_.interrupts->set_cr8(value); }
bool WiredBoard::intr_pending() noexcept { return wiring_.interrupts->intr_pending(); }

int WiredBoard::acknowledge_intr() noexcept {
    const auto vector = wiring_.interrupts->acknowledge_intr();
    return vector ? *vector : -1;
}

CpuEvent WiredBoard::take_event(bool nmi_blocked, bool wait_for_sipi,
                                std::uint8_t& sipi_vector) noexcept {
    return wiring_.interrupts->take_event(nmi_blocked, wait_for_sipi, sipi_vector);
}

void WiredBoard::init_interrupts() noexcept { wiring_.interrupts->init_reset(); }
std::uint64_t WiredBoard::tsc() noexcept { return wiring_.tsc->read(); }
bool WiredBoard::random(std::uint64_t& value) noexcept { return wiring_.entropy->next(value); }
void WiredBoard::yield() noexcept { ::sched_yield(); }

} // namespace doppel::cpu::x86
