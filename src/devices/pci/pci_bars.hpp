// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Base address registers of one function and what is mapped through them (PCI Local Bus 3.0
/// §6.2.5.1). Part of PciDevice, which locks.
/// A register holds no address when it reads 0 or when its range touches the end of its address
/// space: so it looks while a driver sizes it.
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bus/address_space.hpp"
#include "devices/pci/config_space.hpp"

namespace doppel::devices {

enum class BarKind : std::uint8_t { None, Io, Memory32, Memory64, Prefetchable64 };

struct PciBar {
    std::uint64_t bytes = 0; // power of two; at least 16 (memory) or 4 (I/O)
    BarKind kind = BarKind::Memory32;
};

/// Part of a BAR that answers; the rest reads all ones.
struct PciRegion {
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
    std::string name;
    bus::AccessRules rules;
    bus::IoHandler* handler = nullptr;         // part of the device
    const bus::Doorbells* doorbells = nullptr; // likewise; null: none
};

class PciBars {
public:
    static constexpr unsigned kCount = 6;

    /// Construction. A 64-bit register takes two places.
    void add(unsigned index, PciBar bar, PciConfigSpace& config);
    void add_region(unsigned index, PciRegion region);

    void attach(bus::AddressSpace& pio, bus::AddressSpace& mmio);
    void detach();

    /// Maps what registers and command register say; true when something was unmapped, which may
    /// make room for another function.
    bool update(const PciConfigSpace& config);
    /// Maps what overlapped something else before.
    void retry();

private:
    struct Region {
        PciRegion what;
        std::uint64_t mapped_at = 0; // 0: not mapped
    };
    struct Bar {
        PciBar what{0, BarKind::None};
        std::optional<std::uint64_t> base{}; // where it decodes
        std::vector<Region> regions{};
    };
    static std::optional<std::uint64_t> decode(unsigned index, const Bar& bar,
                                               const PciConfigSpace& config);
    bus::AddressSpace* space(const Bar& bar) const {
        return bar.what.kind == BarKind::Io ? pio_ : mmio_;
    }
    void map(Bar& bar);
    bool unmap(Bar& bar);

    std::array<Bar, kCount> bars_{};
    bus::AddressSpace* pio_ = nullptr; // owned by the Machine
    bus::AddressSpace* mmio_ = nullptr;
};

} // namespace doppel::devices
