// SPDX-License-Identifier: Apache-2.0
/// The oracle is iasl (package acpica-tools): it must disassemble every table without a complaint
/// and compile the DSDT back without an error.
#include <doctest/doctest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "base/test_folder.hpp"
#include "firmware/acpi/tables.hpp"

using namespace doppel;
using namespace doppel::firmware::acpi;

namespace {

constexpr std::uint64_t kArea = 0xe0000, kAreaBytes = 0x20000;

AcpiBoard example() {
    AcpiBoard b;
    b.cpus = 4;
    b.local_apic = 0xfee00000;
    b.io_apic = 0xfec00000;
    b.hpet = 0xfed00000;
    b.ecam = 0xe0000000;
    b.ecam_size = 0x10000000;
    b.pci_window = 0xc0000000;
    b.pci_window_end = 0xe0000000;
    b.pci_window64 = 0x8000000000;
    b.pci_window64_size = 0x4000000000;
    b.pm1_event = 0x600;
    b.pm1_control = 0x604;
    b.pm_timer = 0x608;
    b.gpe0 = 0x620;
    b.gpe0_bytes = 16;
    b.reset_port = 0xcf9;
    b.reset_value = 6;
    b.com1 = 0x3f8;
    b.com1_irq = 4;
    b.has_mouse = true;
    return b;
}

std::unique_ptr<memory::GuestMemory> ram() {
    const std::array regions{memory::RamRegion{{0}, 1 << 20}};
    return std::move(memory::GuestMemory::create(regions)).value();
}

std::string run(const std::string& command) {
    std::string output;
    FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
    REQUIRE(pipe != nullptr);
    std::array<char, 4096> buffer{};
    while (const auto n = std::fread(buffer.data(), 1, buffer.size(), pipe))
        output.append(buffer.data(), n);
    ::pclose(pipe);
    return output;
}

/// Signature → address of every table that the XSDT and the FADT lead to.
std::vector<std::pair<std::string, std::uint64_t>> find_tables(const memory::GuestMemory& memory,
                                                               std::uint64_t rsdp) {
    const auto text = [&](std::uint64_t at) {
        std::string s(4, ' ');
        for (std::size_t i = 0; i < 4; ++i)
            s[i] = static_cast<char>(*memory.load<std::uint8_t>({at + i}));
        return s;
    };
    const auto xsdt = *memory.load<std::uint64_t>({rsdp + 24});
    const auto length = *memory.load<std::uint32_t>({xsdt + 4});
    std::vector<std::pair<std::string, std::uint64_t>> found{{"XSDT", xsdt}};
    for (std::uint64_t at = xsdt + 36; at < xsdt + length; at += 8) {
        const auto table = *memory.load<std::uint64_t>({at});
        found.emplace_back(text(table), table);
        if (text(table) == "FACP")
            found.emplace_back("DSDT", *memory.load<std::uint64_t>({table + 140}));
    }
    return found;
}

} // namespace

TEST_CASE("iasl reads every table without a complaint and compiles the DSDT back") {
    const auto memory = ram();
    const auto rsdp = write_tables(*memory, example(), kArea, kAreaBytes);
    REQUIRE(rsdp);
    REQUIRE_MESSAGE(std::system("iasl -v >/dev/null 2>&1") == 0, "iasl is not installed");
    const base::TestFolder folder{"doppel-acpi"};
    const auto tables = find_tables(*memory, *rsdp);
    REQUIRE(tables.size() == 6);
    for (const auto& [name, at] : tables) {
        std::vector<std::byte> bytes(*memory->load<std::uint32_t>({at + 4}));
        REQUIRE(memory->read({at}, bytes));
        unsigned sum = 0;
        for (const auto byte : bytes)
            sum += std::to_integer<unsigned>(byte);
        CHECK_MESSAGE((sum & 0xff) == 0, name);
        const auto file = folder / name;
        std::ofstream out{file + ".dat", std::ios::binary};
        for (const auto byte : bytes)
            out.put(static_cast<char>(byte));
        out.close();
        const auto read = run("cd " + folder.path() + " && iasl -d " + file + ".dat");
        CHECK_MESSAGE(read.find("rror") == std::string::npos, read);
        CHECK_MESSAGE(read.find("arning") == std::string::npos, read);
        const auto compiled = run("iasl -p " + file + "-again " + file + ".dsl");
        CHECK_MESSAGE(compiled.find(" 0 Errors, 0 Warnings") != std::string::npos, compiled);
    }
}

TEST_CASE("the RSDP has both checksums") {
    const auto memory = ram();
    const auto rsdp = write_tables(*memory, example(), kArea, kAreaBytes).value();
    unsigned sum = 0;
    for (std::uint64_t i = 0; i < 36; ++i) {
        sum += *memory->load<std::uint8_t>({rsdp + i});
        if (i == 19)
            CHECK((sum & 0xff) == 0);
    }
    CHECK((sum & 0xff) == 0);
}

TEST_CASE("tables that do not fit are an error") {
    const auto memory = ram();
    CHECK(!write_tables(*memory, example(), kArea, 1024));
}
