// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "firmware/loaders/test_image.hpp"

using namespace doppel;
using namespace doppel::firmware;
using base::Errc;
using test::File;
using test::Vm;

namespace {

constexpr std::size_t kPayload = 5 * 512; // setup_sects = 4
constexpr std::uint64_t kPreferred = 0x1000000;

/// The smallest file that the loader takes: protocol 2.15, payload of 4 KiB.
File bzimage() {
    File file{kPayload + 4096};
    file.put<std::uint8_t>(0x1f1, 4).put<std::uint32_t>(0x1f4, 4096 / 16);
    file.put<std::uint16_t>(0x1fe, 0xaa55).put<std::uint16_t>(0x200, 0x66eb); // jmp to 268h
    file.text(0x202, "HdrS").put<std::uint16_t>(0x206, 0x20f);
    file.put<std::uint8_t>(0x211, 1).put<std::uint32_t>(0x22c, 0x7fffffff);
    file.put<std::uint32_t>(0x230, 0x200000).put<std::uint8_t>(0x234, 1);
    file.put<std::uint16_t>(0x236, 3).put<std::uint32_t>(0x238, 2047);
    file.put<std::uint64_t>(0x258, kPreferred).put<std::uint32_t>(0x260, 0x400000);
    return file.put<std::uint32_t>(kPayload, 0x12345678);
}

} // namespace

TEST_CASE_FIXTURE(Vm, "a bzImage is recognised and loaded where it prefers to be") {
    CHECK(detect_kernel(bzimage().bytes) == KernelFormat::LinuxBzImage);
    const auto state = load(bzimage());
    REQUIRE(state);
    CHECK(state->mode == BootState::Mode::Long64);
    CHECK(state->rip == kPreferred + 0x200);
    CHECK(at<std::uint32_t>(kPreferred) == 0x12345678);
    const auto zero_page = state->rsi;
    CHECK(at<std::uint32_t>(zero_page + 0x202) == 0x53726448); // HdrS
    CHECK(text_at(at<std::uint32_t>(zero_page + 0x228)) == "console=ttyS0");
    CHECK(at<std::uint8_t>(zero_page + 0x1e8) == 3); // e820
    CHECK(at<std::uint64_t>(zero_page + 0x2d0 + 40) == 0x100000);
    CHECK(at<std::uint64_t>(zero_page + 0x070) == 0xe0000); // RSDP
    CHECK(at<std::uint32_t>(zero_page + 0x21c) == 0);       // no ramdisk
}

TEST_CASE_FIXTURE(Vm, "the initial ramdisk stands page-aligned above the kernel") {
    initrd.assign(5000, std::byte{0x5a});
    const auto state = load(bzimage());
    REQUIRE(state);
    const auto where = at<std::uint32_t>(state->rsi + 0x218);
    CHECK(where % 4096 == 0);
    CHECK(where >= kPreferred + 0x400000);
    CHECK(where + 5000 <= kRam);
    CHECK(at<std::uint32_t>(state->rsi + 0x21c) == 5000);
    CHECK(at<std::uint8_t>(where) == 0x5a);
    CHECK(at<std::uint8_t>(where + 4999) == 0x5a);
}

TEST_CASE_FIXTURE(Vm, "a kernel that limits the ramdisk's address gets it below") {
    initrd.assign(5000, std::byte{1});
    const auto state =
        load(bzimage().put<std::uint32_t>(0x22c, 0x1ffffff).put<std::uint16_t>(0x236, 1));
    REQUIRE(state);
    CHECK(at<std::uint32_t>(state->rsi + 0x218) + 5000 <= 0x2000000);
    CHECK(error_of(bzimage().put<std::uint32_t>(0x22c, 0xfff).put<std::uint16_t>(0x236, 1)) ==
          Errc::OutOfRange);
}

TEST_CASE_FIXTURE(Vm, "a relocatable kernel goes elsewhere when its place is not RAM") {
    constexpr std::uint64_t kHoleEnd = 0x1300000; // it needs 4 MiB from 0x1000000 on
    const auto ram = map[2];
    map[1] = {0x100000, 0x1100000 - 0x100000, MemoryMapEntry::Type::Ram};
    map[2] = {kHoleEnd, kRam - kHoleEnd, MemoryMapEntry::Type::Ram};
    const auto state = load(bzimage());
    REQUIRE(state);
    CHECK(state->rip == 0x1400000 + 0x200); // first multiple of its alignment behind the hole
    map[2] = ram;
    CHECK(error_of(bzimage().put<std::uint64_t>(0x258, 0x100000000).put<std::uint8_t>(0x234, 0)) ==
          Errc::OutOfRange);
    CHECK(error_of(bzimage().put<std::uint64_t>(0x258, ~0ull).put<std::uint8_t>(0x234, 0)) ==
          Errc::OutOfRange);
}

TEST_CASE_FIXTURE(Vm,
                  "a relocatable kernel is not loaded below its place, where it would not run") {
    // 64 MiB do not hold 52 MiB from 16 MiB on; from 2 MiB on they would.
    const auto state = load(bzimage().put<std::uint32_t>(0x260, 52 << 20));
    REQUIRE(!state);
    CHECK(state.error().message().find("the kernel needs 68 MiB of memory, the VM has 64 MiB") !=
          std::string::npos);
    CHECK(state.error().message().find("--memory 68M") != std::string::npos);
    CHECK(load(bzimage().put<std::uint32_t>(0x260, 48 << 20)));
    initrd.assign(5000, std::byte{1});
    const auto both = load(bzimage().put<std::uint32_t>(0x260, 48 << 20));
    REQUIRE(!both);
    CHECK(both.error().message().find(
              "the kernel and its initial ramdisk need 65 MiB of memory, the VM has 64 MiB") !=
          std::string::npos);
    CHECK(error_of(bzimage().put<std::uint64_t>(0x258, 0x100000000)) == Errc::OutOfRange);
}

TEST_CASE_FIXTURE(Vm, "what does not fit into memory is refused") {
    CHECK(error_of(bzimage().put<std::uint32_t>(0x260, 0xffffffff)) == Errc::OutOfRange);
    initrd.assign(kRam, std::byte{1});
    CHECK(error_of(bzimage()) == Errc::OutOfRange);
    initrd.clear();
    command_line.assign(2048, 'x');
    CHECK(error_of(bzimage()) == Errc::InvalidArgument);
    command_line.assign(2047, 'x');
    CHECK(load(bzimage()));
}

TEST_CASE_FIXTURE(Vm, "a bzImage cut off anywhere is refused") {
    const auto whole = bzimage().bytes.size();
    for (std::size_t size :
         {std::size_t{0x206}, std::size_t{0x211}, std::size_t{0x238}, std::size_t{0x267},
          std::size_t{0x268}, std::size_t{0x400}, kPayload, kPayload + 1, whole - 16}) {
        CAPTURE(size);
        CHECK(error_of(bzimage().cut(size)) == Errc::Corrupt);
    }
}

TEST_CASE_FIXTURE(Vm, "a payload may end within the last 16 bytes that the header counts") {
    CHECK(load(bzimage().cut(bzimage().bytes.size() - 15)));
}

TEST_CASE_FIXTURE(Vm, "a header that lies is refused") {
    CHECK(error_of(bzimage().put<std::uint32_t>(0x1f4, 0xffffffff)) == Errc::Corrupt); // syssize
    CHECK(error_of(bzimage().put<std::uint32_t>(0x1f4, 0)) == Errc::Corrupt);
    CHECK(error_of(bzimage().put<std::uint8_t>(0x1f1, 255)) == Errc::Corrupt);       // setup_sects
    CHECK(error_of(bzimage().put<std::uint32_t>(0x230, 0x300000)) == Errc::Corrupt); // alignment
    CHECK(error_of(bzimage()
                       .put<std::uint64_t>(0x258, 0x8000)
                       .put<std::uint8_t>(0x234, 0))); // over our boot data
}

TEST_CASE_FIXTURE(Vm, "a kernel without the 64-bit entry is entered in 32 bits") {
    const auto state = load(bzimage().put<std::uint16_t>(0x236, 0));
    REQUIRE(state);
    CHECK(state->mode == BootState::Mode::Protected32);
    CHECK(state->rip == kPreferred);
    CHECK(state->code_segment == 0x10);
    CHECK(state->data_segment == 0x18);
    CHECK(at<std::uint64_t>(state->gdt_base + 0x10) == 0x00cf9b000000ffff);
    CHECK(at<std::uint64_t>(state->gdt_base + 0x18) == 0x00cf93000000ffff);
    CHECK(at<std::uint32_t>(state->rsi + 0x214) == kPreferred); // code32_start
}

TEST_CASE_FIXTURE(Vm, "old kernels and those that go to low memory are named as such") {
    CHECK(error_of(bzimage().put<std::uint16_t>(0x206, 0x20b)) == Errc::Unsupported);
    CHECK(error_of(bzimage().put<std::uint8_t>(0x211, 0)) == Errc::Unsupported);
}

TEST_CASE_FIXTURE(Vm, "no more of the setup header is copied than there is") {
    // The jump's distance says where the header ends; the rest of the zero page is ours.
    const auto state =
        load(bzimage().put<std::uint16_t>(0x200, 0x10eb).put<std::uint32_t>(0x250, ~0u));
    REQUIRE(state);
    CHECK(at<std::uint32_t>(state->rsi + 0x250) == 0);
    CHECK(load(bzimage().put<std::uint16_t>(0x200, 0xffeb)));
}
