// SPDX-License-Identifier: Apache-2.0
/// The name space: processors, the PCI Express root with its windows and interrupt routing, the ISA
/// chips, S5.
#include "firmware/acpi/dsdt.hpp"

#include <fmt/core.h>

namespace doppel::firmware::acpi {

namespace {

constexpr unsigned kSlots = 32, kPins = 4;

/// _PRT: every pin of every slot straight to a GSI (ACPI 6.5 §6.2.13).
Bytes interrupt_routing(std::uint32_t first_gsi) {
    std::vector<Bytes> entries;
    for (unsigned slot = 0; slot < kSlots; ++slot)
        for (unsigned pin = 0; pin < kPins; ++pin)
            entries.push_back(
                aml_package({aml_integer(std::uint64_t{slot} << 16 | 0xffff), aml_integer(pin),
                             aml_integer(0), aml_integer(first_gsi + (slot + pin) % kPins)}));
    return aml_package(entries);
}

Bytes isa_device(std::string_view name, std::string_view id, unsigned uid, const Bytes& resources) {
    return aml_device(name, {aml_name("_HID", aml_eisa_id(id)), aml_name("_UID", aml_integer(uid)),
                             aml_name("_STA", aml_integer(0xf)), aml_name("_CRS", resources)});
}

Bytes isa_devices(const AcpiBoard& board) {
    auto out = aml_join({
        isa_device("COM1", "PNP0501", 1,
                   aml_resources({resource_io(board.com1, 8), resource_irq(board.com1_irq)})),
        isa_device("RTC", "PNP0B00", 0, aml_resources({resource_io(0x70, 2), resource_irq(8)})),
        isa_device("PIT", "PNP0100", 0, aml_resources({resource_io(0x40, 4), resource_irq(0)})),
        isa_device("KBD", "PNP0303", 0,
                   aml_resources({resource_io(0x60, 1), resource_io(0x64, 1), resource_irq(1)})),
    });
    if (board.has_mouse)
        out = aml_join({out, isa_device("MOU", "PNP0F13", 0, aml_resources({resource_irq(12)}))});
    return out;
}

Bytes pci_root(const AcpiBoard& board) {
    const auto windows = aml_resources({
        resource_word_window(AddressKind::BusNumber, 0, 255),
        resource_io(0xcf8, 8),
        resource_word_window(AddressKind::Io, 0, 0xcf7),
        resource_word_window(AddressKind::Io, 0xd00, 0xffff),
        resource_dword_window(AddressKind::Memory, 0xa0000, 0xbffff),
        resource_dword_window(AddressKind::Memory, board.pci_window, board.pci_window_end - 1),
        resource_qword_window(AddressKind::Memory, board.pci_window64,
                              board.pci_window64 + board.pci_window64_size - 1),
    });
    return aml_device(
        "PCI0", {aml_name("_HID", aml_eisa_id("PNP0A08")), aml_name("_CID", aml_eisa_id("PNP0A03")),
                 aml_name("_SEG", aml_integer(0)), aml_name("_BBN", aml_integer(0)),
                 aml_name("_UID", aml_integer(0)), aml_name("_CRS", windows),
                 aml_name("_PRT", interrupt_routing(board.pci_first_gsi)),
                 // _OSC (§6.2.12): the guest may control all it asks for
                 aml_method("_OSC", 4, {aml_return_argument(3)}), isa_devices(board)});
}

Bytes processors(unsigned count) {
    Bytes out;
    for (unsigned i = 0; i < count; ++i)
        out = aml_join(
            {out, aml_device(fmt::format("C{:03X}", i), {aml_name("_HID", aml_string("ACPI0007")),
                                                         aml_name("_UID", aml_integer(i))})});
    return out;
}

} // namespace

Bytes dsdt_body(const AcpiBoard& board) {
    const auto ecam = aml_device(
        "MBRD",
        {aml_name("_HID", aml_eisa_id("PNP0C02")), aml_name("_UID", aml_integer(0)),
         aml_name("_CRS", aml_resources({resource_fixed_memory(board.ecam, board.ecam_size)}))});
    const auto hpet = aml_device(
        "HPET", {aml_name("_HID", aml_eisa_id("PNP0103")), aml_name("_UID", aml_integer(0)),
                 aml_name("_CRS", aml_resources({resource_fixed_memory(board.hpet, 0x400)}))});
    const auto type = aml_integer(board.s5_sleep_type);
    return aml_join({
        aml_name("\\_S5", aml_package({type, type, aml_integer(0), aml_integer(0)})),
        aml_scope("\\_SB", {processors(board.cpus), ecam, hpet, pci_root(board)}),
    });
}

} // namespace doppel::firmware::acpi
