// SPDX-License-Identifier: Apache-2.0
#include "firmware/acpi/tables.hpp"

#include <cstring>
#include <string_view>

#include "base/bytes.hpp"
#include "firmware/acpi/dsdt.hpp"

namespace doppel::firmware::acpi {

using base::Result;
using base::store_le;

namespace {

constexpr std::string_view kOemId = "DOPPEL", kOemTableId = "DOPPELPC", kCreator = "DPPL";
constexpr std::size_t kHeaderBytes = 36;
constexpr std::size_t kRsdpBytes = 36;

std::byte checksum(std::span<const std::byte> bytes) {
    unsigned sum = 0;
    for (const auto byte : bytes)
        sum += std::to_integer<unsigned>(byte);
    return static_cast<std::byte>(0u - sum);
}

/// A table under construction: fields at offsets that the specification gives.
class Table {
public:
    Table(std::string_view signature, std::uint8_t revision, std::size_t size) : bytes_(size) {
        text(0, signature);
        put(8, revision);
        text(10, kOemId);
        text(16, kOemTableId);
        put(24, std::uint32_t{1});
        text(28, kCreator);
        put(32, std::uint32_t{1});
    }
    template <std::unsigned_integral T> void put(std::size_t at, T value) {
        store_le(bytes_.data() + at, value);
    }
    void text(std::size_t at, std::string_view what) {
        std::memcpy(bytes_.data() + at, what.data(), what.size());
    }
    /// Generic address structure (§5.2.3.2).
    void address(std::size_t at, std::uint8_t space, std::uint8_t bits, std::uint8_t access,
                 std::uint64_t where) {
        put(at, space);
        put(at + 1, bits);
        put<std::uint8_t>(at + 2, 0);
        put(at + 3, access);
        put(at + 4, where);
    }
    template <std::unsigned_integral T> void append(T value) {
        bytes_.resize(bytes_.size() + sizeof value);
        put(bytes_.size() - sizeof value, value);
    }
    void append(const Bytes& more) { bytes_.insert(bytes_.end(), more.begin(), more.end()); }

    Bytes finish() {
        put(4, static_cast<std::uint32_t>(bytes_.size()));
        bytes_[9] = std::byte{0};
        bytes_[9] = checksum(bytes_);
        return std::move(bytes_);
    }

private:
    Bytes bytes_;
};

constexpr std::uint8_t kSystemMemory = 0, kSystemIo = 1;

/// FADT (§5.2.9), 276 bytes, version 6.5.
Bytes fadt(const AcpiBoard& b, std::uint64_t facs, std::uint64_t dsdt) {
    constexpr std::uint32_t kWbinvd = 1 << 0, kProcC1 = 1 << 2, kNoSleepButton = 1 << 5,
                            kTimer32 = 1 << 8, kResetRegister = 1 << 10;
    constexpr std::uint16_t kLegacyDevices = 1 << 0, k8042 = 1 << 1, kNoVga = 1 << 2;
    Table t{"FACP", 6, 276};
    t.put(36, static_cast<std::uint32_t>(facs));
    t.put(40, static_cast<std::uint32_t>(dsdt));
    t.put(46, std::uint16_t{b.sci_irq});
    t.put(56, std::uint32_t{b.pm1_event});
    t.put(64, std::uint32_t{b.pm1_control});
    t.put(76, std::uint32_t{b.pm_timer});
    t.put(80, std::uint32_t{b.gpe0});
    t.put<std::uint8_t>(88, 4); // PM1_EVT_LEN
    t.put<std::uint8_t>(89, 2); // PM1_CNT_LEN
    t.put<std::uint8_t>(91, 4); // PM_TMR_LEN
    t.put<std::uint8_t>(92, b.gpe0_bytes);
    t.put<std::uint16_t>(96, 0xfff); // no C2
    t.put<std::uint16_t>(98, 0xfff); // no C3
    t.put<std::uint8_t>(108, 0x32);  // century register of the RTC
    t.put<std::uint16_t>(109, kLegacyDevices | k8042 | kNoVga);
    t.put<std::uint32_t>(112, kWbinvd | kProcC1 | kNoSleepButton | kTimer32 | kResetRegister);
    t.address(116, kSystemIo, 8, 1, b.reset_port);
    t.put(128, b.reset_value);
    t.put<std::uint8_t>(131, 5); // minor version
    t.put(132, facs);
    t.put(140, dsdt);
    t.address(148, kSystemIo, 32, 2, b.pm1_event);
    t.address(172, kSystemIo, 16, 2, b.pm1_control);
    t.address(208, kSystemIo, 32, 3, b.pm_timer);
    t.address(220, kSystemIo, static_cast<std::uint8_t>(b.gpe0_bytes * 8), 1, b.gpe0);
    return t.finish();
}

Bytes facs() {
    Bytes bytes(64);
    std::memcpy(bytes.data(), "FACS", 4);
    store_le<std::uint32_t>(bytes.data() + 4, 64);
    store_le<std::uint8_t>(bytes.data() + 32, 2);
    return bytes;
}

/// MADT (§5.2.12).
Bytes madt(const AcpiBoard& b) {
    Table t{"APIC", 6, kHeaderBytes + 8};
    t.put(36, b.local_apic);
    t.put<std::uint32_t>(40, 1); // PCAT_COMPAT: there is an 8259 pair
    for (unsigned i = 0; i < b.cpus; ++i) {
        t.append<std::uint16_t>(0x0800); // local APIC, 8 bytes
        t.append(static_cast<std::uint8_t>(i));
        t.append(static_cast<std::uint8_t>(i));
        t.append<std::uint32_t>(1); // enabled
    }
    t.append<std::uint16_t>(0x0c01); // I/O APIC, 12 bytes
    t.append<std::uint16_t>(0);      // id 0, reserved
    t.append(b.io_apic);
    t.append<std::uint32_t>(0); // first GSI
    const auto override = [&](std::uint8_t irq, std::uint32_t gsi, std::uint16_t flags) {
        t.append<std::uint16_t>(0x0a02); // interrupt source override, 10 bytes
        t.append<std::uint8_t>(0);       // ISA
        t.append(irq);
        t.append(gsi);
        t.append(flags);
    };
    constexpr std::uint16_t kConforming = 0, kLevelHigh = 0x000d;
    override(0, b.timer_gsi, kConforming);
    override(b.sci_irq, b.sci_irq, kLevelHigh);
    t.append<std::uint16_t>(0x0604); // local APIC NMI, 6 bytes
    t.append<std::uint8_t>(0xff);    // of all processors
    t.append<std::uint16_t>(0);
    t.append<std::uint8_t>(1); // LINT1
    return t.finish();
}

/// PCI Firmware Specification 3.3 §4.1.2.
Bytes mcfg(const AcpiBoard& b) {
    Table t{"MCFG", 1, kHeaderBytes + 8};
    t.append(std::uint64_t{b.ecam});
    t.append<std::uint16_t>(0); // segment
    t.append<std::uint8_t>(0);  // first bus
    t.append(static_cast<std::uint8_t>((b.ecam_size >> 20) - 1));
    t.append<std::uint32_t>(0);
    return t.finish();
}

/// IA-PC HPET Specification 1.0a §3.2.4.
Bytes hpet(const AcpiBoard& b) {
    Table t{"HPET", 1, 56};
    t.put<std::uint32_t>(36, 0x8086a201); // vendor, legacy replacement, 64 bits, 3 comparators
    t.address(40, kSystemMemory, 64, 0, b.hpet);
    t.put<std::uint16_t>(53, 0x80); // minimum tick
    return t.finish();
}

Bytes dsdt(const AcpiBoard& b) {
    Table t{"DSDT", 2, kHeaderBytes};
    t.append(dsdt_body(b));
    return t.finish();
}

Bytes xsdt(std::span<const std::uint64_t> tables) {
    Table t{"XSDT", 1, kHeaderBytes};
    for (const auto address : tables)
        t.append(address);
    return t.finish();
}

/// §5.2.5.3: the first 20 bytes have a checksum of their own.
Bytes rsdp(std::uint64_t xsdt_address) {
    Bytes bytes(kRsdpBytes);
    std::memcpy(bytes.data(), "RSD PTR ", 8);
    std::memcpy(bytes.data() + 9, kOemId.data(), kOemId.size());
    store_le<std::uint8_t>(bytes.data() + 15, 2);
    store_le<std::uint32_t>(bytes.data() + 20, kRsdpBytes);
    store_le(bytes.data() + 24, xsdt_address);
    bytes[8] = checksum(std::span{bytes}.first(20));
    bytes[32] = checksum(bytes);
    return bytes;
}

/// Hands out addresses in the area and writes there.
class Area {
public:
    Area(memory::GuestMemory& memory, std::uint64_t begin, std::uint64_t bytes)
        : memory_{memory}, next_{begin}, end_{begin + bytes} {}

    std::uint64_t place(const Bytes& table) {
        const auto at = base::align_up(next_, 64); // the FACS wants 64 (§5.2.10)
        next_ = at + table.size();
        ok_ = ok_ && next_ <= end_ && memory_.write({at}, table);
        return at;
    }
    bool ok() const { return ok_; }

private:
    memory::GuestMemory& memory_;
    std::uint64_t next_, end_;
    bool ok_ = true;
};

} // namespace

Result<std::uint64_t> write_tables(memory::GuestMemory& memory, const AcpiBoard& board,
                                   std::uint64_t area, std::uint64_t area_bytes) {
    Area rest{memory, area + kRsdpBytes, area_bytes - kRsdpBytes};
    const auto facs_at = rest.place(facs());
    const auto dsdt_at = rest.place(dsdt(board));
    const std::uint64_t tables[]{rest.place(fadt(board, facs_at, dsdt_at)), rest.place(madt(board)),
                                 rest.place(mcfg(board)), rest.place(hpet(board))};
    const auto root = rsdp(rest.place(xsdt(tables)));
    if (!rest.ok() || !memory.write({area}, root))
        return base::fail(base::Errc::OutOfRange,
                          "the ACPI tables do not fit into the memory reserved for them");
    return area;
}

} // namespace doppel::firmware::acpi
