// SPDX-License-Identifier: Apache-2.0
/// ELF files by PVH, ELF files by multiboot.
#include <doctest/doctest.h>

#include "firmware/loaders/elf_image.hpp"
#include "firmware/loaders/multiboot.hpp"
#include "firmware/loaders/test_image.hpp"

using namespace doppel;
using namespace doppel::firmware;
using base::Errc;
using test::File;
using test::Vm;

namespace {

constexpr std::size_t kHeaders = 64, kNotes = 0x200, kCode = 0x1000;
constexpr std::uint64_t kLoad = 0x200000;
constexpr std::uint32_t kEntry = 0x200010;

/// ELF64 for x86-64: one segment of 16 bytes, 4 KiB in memory, one PVH note.
File pvh64() {
    File file{kCode + 16};
    file.put<std::uint32_t>(0, 0x464c457f).put<std::uint8_t>(4, 2).put<std::uint8_t>(5, 1);
    file.put<std::uint8_t>(6, 1).put<std::uint16_t>(16, 2).put<std::uint16_t>(18, 62);
    file.put<std::uint64_t>(24, 0xffffffff81000000).put<std::uint64_t>(32, kHeaders);
    file.put<std::uint16_t>(54, 56).put<std::uint16_t>(56, 2);
    file.put<std::uint32_t>(kHeaders, 1).put<std::uint64_t>(kHeaders + 8, kCode);
    file.put<std::uint64_t>(kHeaders + 16, 0xffffffff81000000).put(kHeaders + 24, kLoad);
    file.put<std::uint64_t>(kHeaders + 32, 16).put<std::uint64_t>(kHeaders + 40, 4096);
    constexpr std::size_t kNote = kHeaders + 56;
    file.put<std::uint32_t>(kNote, 4).put<std::uint64_t>(kNote + 8, kNotes);
    file.put<std::uint64_t>(kNote + 32, 40).put<std::uint64_t>(kNote + 40, 40);
    file.put<std::uint32_t>(kNotes, 4).put<std::uint32_t>(kNotes + 4, 4); // another note first
    file.put<std::uint32_t>(kNotes + 8, 3).text(kNotes + 12, "GNU");
    file.put<std::uint32_t>(kNotes + 20, 4).put<std::uint32_t>(kNotes + 24, 4);
    file.put<std::uint32_t>(kNotes + 28, 18).text(kNotes + 32, "Xen");
    file.put<std::uint32_t>(kNotes + 36, kEntry);
    return file.put<std::uint32_t>(kCode, 0xfeedface);
}

/// ELF32 for i386 with a multiboot header behind the program header.
File multiboot32(std::uint32_t flags = 3) {
    File file{kCode + 16};
    file.put<std::uint32_t>(0, 0x464c457f).put<std::uint8_t>(4, 1).put<std::uint8_t>(5, 1);
    file.put<std::uint16_t>(16, 2).put<std::uint16_t>(18, 3).put<std::uint32_t>(24, kEntry);
    file.put<std::uint32_t>(28, 52).put<std::uint16_t>(42, 32).put<std::uint16_t>(44, 1);
    file.put<std::uint32_t>(52, 1).put<std::uint32_t>(56, kCode).put<std::uint32_t>(60, kLoad);
    file.put(64, static_cast<std::uint32_t>(kLoad)).put<std::uint32_t>(68, 16);
    file.put<std::uint32_t>(72, 4096);
    file.put<std::uint32_t>(0x80, 0x1badb002).put(0x84, flags).put(0x88, 0u - 0x1badb002 - flags);
    return file.put<std::uint32_t>(kCode, 0xfeedface);
}

} // namespace

TEST_CASE_FIXTURE(Vm, "an ELF file with a PVH note starts at the note's entry") {
    CHECK(detect_kernel(pvh64().bytes) == KernelFormat::ElfPvh);
    REQUIRE(memory->fill({kLoad}, 16384, std::byte{0xee}));
    initrd.assign(5000, std::byte{0x5a});
    const auto state = load(pvh64());
    REQUIRE(state);
    CHECK(state->mode == BootState::Mode::Protected32);
    CHECK(state->rip == kEntry);
    CHECK(at<std::uint32_t>(kLoad) == 0xfeedface);
    CHECK(at<std::uint32_t>(kLoad + 16) == 0); // .bss is cleared
    CHECK(at<std::uint32_t>(kLoad + 4092) == 0);
    CHECK(at<std::uint8_t>(kLoad + 4096 + 5000) == 0xee); // and not more, behind the ramdisk
    CHECK(at<std::uint32_t>(state->rbx) == 0x336ec578);
    CHECK(at<std::uint32_t>(state->rbx + 4) == 1);
    CHECK(text_at(at<std::uint64_t>(state->rbx + 24)) == "console=ttyS0");
    CHECK(at<std::uint64_t>(state->rbx + 32) == 0xe0000);
    CHECK(at<std::uint32_t>(state->rbx + 48) == 3); // map entries
    REQUIRE(at<std::uint32_t>(state->rbx + 12) == 1);
    const auto module = at<std::uint64_t>(state->rbx + 16);
    CHECK(at<std::uint64_t>(module) >= kLoad + 4096);
    CHECK(at<std::uint64_t>(module + 8) == 5000);
    CHECK(at<std::uint8_t>(at<std::uint64_t>(module) + 4999) == 0x5a);
}

TEST_CASE_FIXTURE(Vm, "modules of a kernel below 1 MiB stay clear of the boot data") {
    initrd.assign(0x20000, std::byte{0x5a});
    const auto state = load(pvh64().put<std::uint64_t>(kHeaders + 24, 0x2000));
    REQUIRE(state);
    const auto module = at<std::uint64_t>(state->rbx + 16);
    CHECK(at<std::uint64_t>(module) >= 0x100000);
}

TEST_CASE_FIXTURE(Vm, "a segment over the boot data is refused") {
    CHECK(error_of(pvh64().put<std::uint64_t>(kHeaders + 24, 0x10000)) == Errc::OutOfRange);
    CHECK(error_of(pvh64().put<std::uint64_t>(kHeaders + 24, 0xf800)) == Errc::OutOfRange);
}

TEST_CASE_FIXTURE(Vm, "an ELF file cut off anywhere is refused") {
    for (std::size_t size :
         {std::size_t{4}, std::size_t{52}, std::size_t{63}, kHeaders + 111, kCode + 15}) {
        CAPTURE(size);
        CHECK(error_of(pvh64().cut(size)) == Errc::Corrupt);
    }
    // Without the notes it is no PVH kernel.
    CHECK(error_of(pvh64().cut(kNotes + 39)) == Errc::Corrupt);
}

TEST_CASE_FIXTURE(Vm, "ELF headers that lie are refused") {
    CHECK(error_of(pvh64().put<std::uint16_t>(18, 183)) == Errc::Unsupported); // AArch64
    CHECK(error_of(pvh64().put<std::uint8_t>(5, 2)) == Errc::Unsupported);     // big-endian
    CHECK(error_of(pvh64().put<std::uint64_t>(32, ~0ull)) == Errc::Corrupt);   // table's place
    CHECK(error_of(pvh64().put<std::uint64_t>(32, ~0ull - 56)) == Errc::Corrupt);
    CHECK(error_of(pvh64().put<std::uint16_t>(56, 0xffff)) == Errc::Corrupt); // its length
    CHECK(error_of(pvh64().put<std::uint16_t>(56, 0)) == Errc::Corrupt);
    CHECK(error_of(pvh64().put<std::uint16_t>(54, 8)) == Errc::Corrupt); // its entries' size
    CHECK(error_of(pvh64().put<std::uint64_t>(kHeaders + 8, ~0ull)) == Errc::Corrupt); // segment
    CHECK(error_of(pvh64().put<std::uint64_t>(kHeaders + 32, ~0ull)) == Errc::Corrupt);
    CHECK(error_of(pvh64().put<std::uint64_t>(kHeaders + 40, 8)) == Errc::Corrupt);
}

TEST_CASE_FIXTURE(Vm, "a segment outside RAM is refused") {
    constexpr auto kMost = ~std::uint64_t{0};
    for (const std::uint64_t where : std::initializer_list<std::uint64_t>{
             kRam, kRam - 4095, 0xa0000, 0x9e001, 0xf0000, kMost - 4095, kMost}) {
        CAPTURE(where);
        CHECK(error_of(pvh64().put(kHeaders + 24, where)) == Errc::OutOfRange);
    }
    CHECK(error_of(pvh64().put<std::uint64_t>(kHeaders + 40, ~0ull)) == Errc::OutOfRange);
}

TEST_CASE("notes that lie give no PVH entry") {
    const auto entry = [](const File& file) {
        const auto image = ElfImage::parse(file.bytes);
        REQUIRE(image);
        return image->pvh_entry();
    };
    CHECK(entry(pvh64()) == kEntry);
    for (const std::uint32_t size : {0x7fffffffu, 0xffffffffu, 0xfffffffcu, 24u}) {
        CAPTURE(size);
        CHECK_FALSE(entry(pvh64().put(kNotes, size)));
        CHECK_FALSE(entry(pvh64().put(kNotes + 4, size)));
        CHECK_FALSE(entry(pvh64().put(kNotes + 20, size)));
        CHECK_FALSE(entry(pvh64().put(kNotes + 24, size)));
    }
    CHECK_FALSE(entry(pvh64().put<std::uint32_t>(kNotes + 24, 3))); // too short for an address
    CHECK_FALSE(entry(pvh64().text(kNotes + 32, "xen")));
}

TEST_CASE_FIXTURE(Vm, "a kernel with both a multiboot header and a PVH note boots by multiboot") {
    auto both = pvh64();
    both.put<std::uint32_t>(kNotes + 0x30, 0x1badb002).put<std::uint32_t>(kNotes + 0x34, 0);
    both.put<std::uint32_t>(kNotes + 0x38, 0u - 0x1badb002);
    CHECK(detect_kernel(both.bytes) == KernelFormat::Multiboot);
}

TEST_CASE_FIXTURE(Vm, "a multiboot kernel gets its information structure") {
    CHECK(detect_kernel(multiboot32().bytes) == KernelFormat::Multiboot);
    const std::vector<std::byte> bytes(3, std::byte{7});
    modules.push_back({bytes, "seven x3"});
    initrd.assign(2, std::byte{9});
    const auto state = load(multiboot32());
    REQUIRE(state);
    CHECK(state->mode == BootState::Mode::Protected32);
    CHECK(state->rip == kEntry);
    CHECK(state->rax == 0x2badb002);
    const auto info = state->rbx;
    CHECK((at<std::uint32_t>(info) & 0x4d) == 0x4d);
    CHECK(at<std::uint32_t>(info + 8) == (kRam >> 10) - 1024);
    CHECK(text_at(at<std::uint32_t>(info + 16)) == "k.elf console=ttyS0");
    REQUIRE(at<std::uint32_t>(info + 20) == 2);
    const auto second = at<std::uint32_t>(info + 24) + 16;
    const auto first_byte = at<std::uint32_t>(second);
    CHECK(first_byte % 4096 == 0);
    CHECK(at<std::uint32_t>(second + 4) == first_byte + 3);
    CHECK(at<std::uint8_t>(first_byte + 2) == 7);
    CHECK(text_at(at<std::uint32_t>(second + 8)) == "seven x3");
    CHECK(at<std::uint32_t>(info + 44) == 3 * 24);
    CHECK(at<std::uint32_t>(at<std::uint32_t>(info + 48)) == 20);
}

TEST_CASE_FIXTURE(Vm, "a flat multiboot kernel is loaded by the addresses in its header") {
    constexpr std::uint32_t kFlags = 0x10003, kFlat = 0x300000;
    const auto flat = [] {
        File file{0x1000};
        file.put<std::uint32_t>(0x40, 0x1badb002).put<std::uint32_t>(0x44, kFlags);
        file.put<std::uint32_t>(0x48, 0u - 0x1badb002 - kFlags);
        file.put<std::uint32_t>(0x4c, kFlat + 0x40).put<std::uint32_t>(0x50, kFlat);
        file.put<std::uint32_t>(0x54, kFlat + 0x800).put<std::uint32_t>(0x58, kFlat + 0x2000);
        return file.put<std::uint32_t>(0x5c, kFlat + 0x60).put<std::uint32_t>(0x7fc, 0xabcdef01);
    };
    REQUIRE(memory->fill({kFlat}, 0x3000, std::byte{0xee}));
    const auto state = load(flat());
    REQUIRE(state);
    CHECK(state->rip == kFlat + 0x60);
    CHECK(at<std::uint32_t>(kFlat + 0x7fc) == 0xabcdef01);
    CHECK(at<std::uint32_t>(kFlat + 0x800) == 0);
    CHECK(at<std::uint8_t>(kFlat + 0x2000) == 0xee);
    CHECK(load(flat().put<std::uint32_t>(0x54, 0))); // load_end 0: all of the file
    CHECK(error_of(flat().put<std::uint32_t>(0x54, kFlat + 0x1001)) == Errc::Corrupt);
    CHECK(error_of(flat().put<std::uint32_t>(0x54, kFlat - 1)) == Errc::Corrupt);
    CHECK(error_of(flat().put<std::uint32_t>(0x50, kFlat + 0x41)) == Errc::Corrupt);
    CHECK(error_of(flat().put<std::uint32_t>(0x50, 0)) == Errc::Corrupt);
    CHECK(error_of(flat().put<std::uint32_t>(0x58, 0xffffffff)) == Errc::OutOfRange);
    CHECK(error_of(flat().cut(0x5f)));
    auto low = flat();
    low.put<std::uint32_t>(0x4c, 0x20040).put<std::uint32_t>(0x50, 0x20000);
    low.put<std::uint32_t>(0x54, 0).put<std::uint32_t>(0x58, 0);
    CHECK(error_of(low) == Errc::OutOfRange); // where the boot data goes
}

TEST_CASE_FIXTURE(Vm, "multiboot headers that are none are not taken for one") {
    CHECK(error_of(multiboot32().put<std::uint32_t>(0x88, 0)) == Errc::Corrupt); // checksum
    CHECK(error_of(multiboot32(0x8)) == Errc::Unsupported); // demands that do not exist
    auto late = multiboot32();
    late.put<std::uint32_t>(0x80, 0); // no header here, but one where nobody looks
    late.put<std::uint32_t>(8192, 0x1badb002).put<std::uint32_t>(8196, 0);
    late.put<std::uint32_t>(8200, 0u - 0x1badb002);
    CHECK(error_of(late) == Errc::Corrupt);
    CHECK_FALSE(find_multiboot_header(late.bytes));
    CHECK_FALSE(find_multiboot_header(multiboot32().cut(0x8b).bytes));
    CHECK_FALSE(find_multiboot_header({}));
}
