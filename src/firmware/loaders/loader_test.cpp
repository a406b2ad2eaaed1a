// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "firmware/loaders/test_image.hpp"

using namespace doppel;
using namespace doppel::firmware;
using base::Errc;
using test::File;
using test::Vm;

TEST_CASE_FIXTURE(Vm, "a boot sector starts at 7c00h in real mode") {
    File sector{512};
    sector.put<std::uint16_t>(0, 0xfeeb).put<std::uint16_t>(510, 0xaa55);
    CHECK(detect_kernel(sector.bytes) == KernelFormat::BootSector);
    const auto state = load(sector);
    REQUIRE(state);
    CHECK(state->mode == BootState::Mode::Real16);
    CHECK(state->rip + state->code_segment * 16u == 0x7c00);
    CHECK(at<std::uint16_t>(0x7c00) == 0xfeeb);
    CHECK(error_of(sector.put<std::uint16_t>(510, 0x55aa)) == Errc::Corrupt);
}

TEST_CASE_FIXTURE(Vm, "a boot image is whole sectors below 640 KiB") {
    File image{4 * 512};
    image.put<std::uint16_t>(510, 0xaa55).put<std::uint32_t>(2044, 77);
    REQUIRE(load(image));
    CHECK(at<std::uint32_t>(0x7c00 + 2044) == 77);
    CHECK(error_of(image.put<std::uint8_t>(2048, 1)) == Errc::Corrupt);
    CHECK(error_of(image.cut(511)) == Errc::Corrupt);
    File large{0x9fc00 - 0x7c00 + 512};
    CHECK(error_of(large.put<std::uint16_t>(510, 0xaa55)) == Errc::OutOfRange);
}

TEST_CASE_FIXTURE(Vm, "what is no kernel is refused with a hint") {
    for (const std::size_t size : {0, 1, 3, 4, 511, 512, 4096}) {
        CAPTURE(size);
        const auto refused = load(File{size});
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code == Errc::Corrupt);
        CHECK_FALSE(refused.error().hint.empty());
    }
    CHECK(error_of(File{}.text(0, "#!/bin/sh\necho a shell script is no kernel\n")) ==
          Errc::Corrupt);
    CHECK(error_of(File{}.text(0, "\x1f\x8b compressed")) == Errc::Corrupt);
}

TEST_CASE_FIXTURE(Vm, "a command line that does not fit is refused by every loader") {
    command_line.assign(1 << 20, 'x');
    constexpr std::uint32_t kFlags = 0x10000;
    File flat{0x1000};
    flat.put<std::uint32_t>(0, 0x1badb002).put<std::uint32_t>(4, kFlags);
    flat.put<std::uint32_t>(8, 0u - 0x1badb002 - kFlags).put<std::uint32_t>(12, 0x200000);
    flat.put<std::uint32_t>(16, 0x200000).put<std::uint32_t>(28, 0x200000);
    CHECK(error_of(flat) == Errc::OutOfRange);
    command_line = "short";
    CHECK(load(flat));
}
