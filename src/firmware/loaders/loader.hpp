// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Kernel loaders: put a kernel, its initial ramdisk and its boot data into guest RAM and say in
/// which state the first CPU starts. Files are foreign bytes: everything is checked.
/// Owner thread only.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "memory/guest_memory.hpp"

namespace doppel::firmware {

enum class KernelFormat : std::uint8_t {
    LinuxBzImage, // boot protocol 2.12 or later, entered in 64 or 32 bits
    ElfPvh,       // ELF with a Xen PVH note (XEN_ELFNOTE_PHYS32_ENTRY)
    Multiboot,    // multiboot 1 header, ELF or flat
    BootSector,   // 512 bytes (or more, whole sectors) ending in 55 aa
};

const char* kernel_format_name(KernelFormat format);

/// Recognises a kernel by its content. Errors: Corrupt, with a hint at what is accepted.
base::Result<KernelFormat> detect_kernel(std::span<const std::byte> file);

/// One entry of the memory map that the guest is told (ACPI 6.5 §15: address range types).
struct MemoryMapEntry {
    enum class Type : std::uint32_t { Ram = 1, Reserved = 2, Acpi = 3, Nvs = 4 };
    std::uint64_t base = 0;
    std::uint64_t size = 0;
    Type type = Type::Ram;
};

struct MultibootModule {
    std::span<const std::byte> bytes;
    std::string command_line;
};

/// What the loaders need from the board; all ranges of `map` are sorted and disjoint.
struct BootRequest {
    std::span<const std::byte> kernel;
    std::string_view kernel_name;      // first word of a multiboot command line
    std::span<const std::byte> initrd; // empty when there is none
    std::string_view command_line;
    std::vector<MultibootModule> modules;
    std::span<const MemoryMapEntry> map;
    std::uint64_t rsdp = 0; // guest-physical address of the ACPI root pointer, 0 = none
};

/// State of the first CPU at its first instruction. Flat segments; everything not named is as after
/// RESET.
struct BootState {
    enum class Mode : std::uint8_t {
        Real16,      // cs = rip = 0:7c00 style: `code_segment`:`rip`
        Protected32, // paging off, flat 4 GiB segments
        Long64,      // identity-mapped by page tables at cr3
    };
    Mode mode = Mode::Real16;
    std::uint64_t rip = 0;
    std::uint64_t rax = 0, rbx = 0, rdx = 0, rsi = 0, rsp = 0;
    std::uint64_t cr3 = 0;
    std::uint64_t gdt_base = 0; // of the GDT that the loader wrote
    std::uint16_t gdt_limit = 0;
    std::uint16_t code_segment = 0, data_segment = 0; // selectors (Real16: segment values)
};

/// Errors: Corrupt, Unsupported, OutOfRange (does not fit into the memory map), each one sentence.
base::Result<BootState> load_kernel(memory::GuestMemory& memory, const BootRequest& request);

// One per format, behind load_kernel().
base::Result<BootState> load_linux_bzimage(memory::GuestMemory& memory, const BootRequest& request);
base::Result<BootState> load_elf_pvh(memory::GuestMemory& memory, const BootRequest& request);
base::Result<BootState> load_multiboot(memory::GuestMemory& memory, const BootRequest& request);
base::Result<BootState> load_boot_sector(memory::GuestMemory& memory, const BootRequest& request);

} // namespace doppel::firmware
