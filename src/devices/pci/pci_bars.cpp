// SPDX-License-Identifier: Apache-2.0
#include "devices/pci/pci_bars.hpp"

#include <bit>

#include "base/verify.hpp"

namespace doppel::devices {

namespace {

constexpr std::uint64_t kIoSpace = 0x1'0000;
constexpr std::uint64_t kMemory32 = 0x1'0000'0000;
constexpr std::uint64_t kMemory64 = 1ull << 52; // the widest physical address of x86-64

bool is_64bit(BarKind kind) { return kind == BarKind::Memory64 || kind == BarKind::Prefetchable64; }

/// Read-only low bits (PCI Local Bus 3.0 §6.2.5.1).
std::uint32_t type_bits(BarKind kind) {
    switch (kind) {
    case BarKind::Io: return 0x1;
    case BarKind::Memory64: return 0x4;
    case BarKind::Prefetchable64: return 0xc;
    default: return 0;
    }
}

std::uint16_t register_of(unsigned index) {
    return static_cast<std::uint16_t>(pci::kBar0 + index * 4);
}

} // namespace

void PciBars::add(unsigned index, PciBar bar, PciConfigSpace& config) {
    const bool wide = is_64bit(bar.kind);
    DOPPEL_VERIFY(index + (wide ? 1u : 0u) < kCount, "a base address register that exists");
    DOPPEL_VERIFY(bar.bytes >= (bar.kind == BarKind::Io ? 4u : 16u) &&
                      std::has_single_bit(bar.bytes),
                  "size of a base address register");
    bars_[index].what = bar;
    const auto mask = ~(bar.bytes - 1);
    config.define(register_of(index), 4, type_bits(bar.kind), static_cast<std::uint32_t>(mask));
    if (wide)
        config.define(register_of(index + 1), 4, 0, static_cast<std::uint32_t>(mask >> 32));
}

void PciBars::add_region(unsigned index, PciRegion region) {
    DOPPEL_VERIFY(index < kCount && region.bytes != 0 && region.offset < bars_[index].what.bytes &&
                      region.bytes <= bars_[index].what.bytes - region.offset,
                  "a region within its base address register");
    bars_[index].regions.push_back({std::move(region), 0});
}

void PciBars::attach(bus::AddressSpace& pio, bus::AddressSpace& mmio) {
    pio_ = &pio;
    mmio_ = &mmio;
}

void PciBars::detach() {
    for (auto& bar : bars_) {
        unmap(bar);
        bar.base.reset();
    }
    pio_ = mmio_ = nullptr;
}

std::optional<std::uint64_t> PciBars::decode(unsigned index, const Bar& bar,
                                             const PciConfigSpace& config) {
    const bool is_io = bar.what.kind == BarKind::Io;
    const auto command = config.read(pci::kCommand, 2);
    if ((command & (is_io ? pci::kCommandIo : pci::kCommandMemory)) == 0)
        return std::nullopt;
    std::uint64_t base = config.read(register_of(index), 4) & (is_io ? ~3u : ~15u);
    std::uint64_t end = is_io ? kIoSpace : kMemory32;
    if (is_64bit(bar.what.kind)) {
        base |= std::uint64_t{config.read(register_of(index + 1), 4)} << 32;
        end = base < kMemory32 ? kMemory32 : kMemory64;
    }
    if (base == 0 || base >= end || bar.what.bytes >= end - base)
        return std::nullopt;
    return base;
}

bool PciBars::update(const PciConfigSpace& config) {
    bool released = false;
    for (unsigned index = 0; index < kCount; ++index) {
        auto& bar = bars_[index];
        if (bar.what.kind == BarKind::None || mmio_ == nullptr)
            continue;
        const auto base = decode(index, bar, config);
        if (base == bar.base)
            continue;
        released |= unmap(bar);
        bar.base = base;
        map(bar);
    }
    return released;
}

void PciBars::retry() {
    for (auto& bar : bars_)
        map(bar);
}

void PciBars::map(Bar& bar) {
    if (!bar.base || mmio_ == nullptr)
        return;
    for (auto& region : bar.regions) {
        const auto& what = region.what;
        const auto at = *bar.base + what.offset;
        if (region.mapped_at == 0 &&
            space(bar)->map({at, what.bytes, what.name, what.rules, what.handler, what.doorbells}))
            region.mapped_at = at; // else it overlaps what was there first: it waits
    }
}

bool PciBars::unmap(Bar& bar) {
    bool any = false;
    for (auto& region : bar.regions) {
        if (region.mapped_at == 0)
            continue;
        space(bar)->unmap(region.mapped_at);
        region.mapped_at = 0;
        any = true;
    }
    return any;
}

} // namespace doppel::devices
