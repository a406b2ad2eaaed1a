// SPDX-License-Identifier: Apache-2.0
#include "firmware/loaders/loader.hpp"

#include <cstring>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "firmware/loaders/elf_image.hpp"
#include "firmware/loaders/multiboot.hpp"

namespace doppel::firmware {

using base::Errc;
using base::load_le;
using base::Result;

namespace {

constexpr std::size_t kSector = 512;
constexpr std::size_t kBootSignatureOffset = 510;
constexpr std::size_t kHdrSOffset = 0x202;
constexpr std::size_t kSetupHeaderEnd = 0x268; // through init_size
constexpr std::uint16_t kBootSignature = 0xaa55;
constexpr std::uint64_t kBootSectorAddress = 0x7c00;
constexpr std::uint64_t kBootSectorLimit = 0x9fc00; // conventional memory ends at the EBDA

bool has_text(std::span<const std::byte> file, std::size_t at, std::string_view text) {
    return file.size() >= at + text.size() &&
           std::memcmp(file.data() + at, text.data(), text.size()) == 0;
}

bool has_boot_signature(std::span<const std::byte> file) {
    return file.size() >= kSector &&
           load_le<std::uint16_t>(file.data() + kBootSignatureOffset) == kBootSignature;
}

} // namespace

const char* kernel_format_name(KernelFormat format) {
    switch (format) {
    case KernelFormat::LinuxBzImage: return "Linux bzImage";
    case KernelFormat::ElfPvh: return "ELF with PVH entry";
    case KernelFormat::Multiboot: return "multiboot 1";
    case KernelFormat::BootSector: return "boot sector";
    }
    return "?";
}

Result<KernelFormat> detect_kernel(std::span<const std::byte> file) {
    if (has_text(file, kHdrSOffset, "HdrS")) {
        if (file.size() < kSetupHeaderEnd)
            return base::fail(
                Errc::Corrupt,
                fmt::format("the kernel image is cut off after {} bytes", file.size()),
                "copy it again");
        return KernelFormat::LinuxBzImage;
    }
    // Before PVH: a hypervisor has both, and takes its PVH entry for that of a guest of another
    // one.
    if (find_multiboot_header(file))
        return KernelFormat::Multiboot;
    if (ElfImage::is_elf(file)) {
        const auto image = DOPPEL_TRY(ElfImage::parse(file));
        if (image.pvh_entry())
            return KernelFormat::ElfPvh;
    }
    if (has_boot_signature(file) && file.size() % kSector == 0)
        return KernelFormat::BootSector;
    return base::fail(Errc::Corrupt, "this is no kernel that can be booted",
                      "accepted are a Linux bzImage (vmlinuz), an ELF file with a PVH note, a "
                      "multiboot 1 kernel and a raw boot sector");
}

Result<BootState> load_boot_sector(memory::GuestMemory& memory, const BootRequest& request) {
    if (request.kernel.size() > kBootSectorLimit - kBootSectorAddress)
        return base::fail(Errc::OutOfRange,
                          fmt::format("a boot image of {} bytes does not fit below 640 KiB",
                                      request.kernel.size()));
    if (!memory.write({kBootSectorAddress}, request.kernel))
        return base::fail(Errc::OutOfRange, "the VM has no memory at 7c00h");
    BootState state;
    state.mode = BootState::Mode::Real16;
    state.rip = kBootSectorAddress;
    state.rsp = kBootSectorAddress;
    state.rdx = 0x80; // as a BIOS says: booted from the first hard disk
    return state;
}

Result<BootState> load_kernel(memory::GuestMemory& memory, const BootRequest& request) {
    switch (DOPPEL_TRY(detect_kernel(request.kernel))) {
    case KernelFormat::LinuxBzImage: return load_linux_bzimage(memory, request);
    case KernelFormat::BootSector: return load_boot_sector(memory, request);
    case KernelFormat::ElfPvh: return load_elf_pvh(memory, request);
    case KernelFormat::Multiboot: return load_multiboot(memory, request);
    }
    return base::fail(Errc::Internal, "a kernel format without a loader");
}

} // namespace doppel::firmware
