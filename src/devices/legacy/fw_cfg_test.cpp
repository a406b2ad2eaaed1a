// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <bit>
#include <memory>

#include "base/bytes.hpp"
#include "devices/legacy/fw_cfg.hpp"

using namespace doppel;
using namespace doppel::devices;

namespace {

std::vector<std::byte> bytes(std::string_view text) {
    const auto view = std::as_bytes(std::span{text});
    return {view.begin(), view.end()};
}

struct Rig {
    memory::RamRegion region{{0}, 1 << 20};
    std::unique_ptr<memory::GuestMemory> memory = memory::GuestMemory::create({&region, 1}).value();
    FwCfg fw{*memory};

    void select(std::uint16_t key) { fw.io_write({0, 2}, key); }
    std::string read(std::size_t count) {
        std::string out;
        for (std::size_t i = 0; i < count; ++i)
            out.push_back(static_cast<char>(fw.io_read({1, 1})));
        return out;
    }
    std::uint32_t dma(std::uint32_t control, std::uint32_t length, std::uint64_t address) {
        std::array<std::byte, 16> request{};
        base::store_be(request.data(), control);
        base::store_be(request.data() + 4, length);
        base::store_be(request.data() + 8, address);
        REQUIRE(memory->write({0x1000}, request));
        fw.io_write({4, 4}, 0);
        fw.io_write({8, 4}, std::byteswap(0x1000u));
        return std::byteswap(memory->load<std::uint32_t>({0x1000}).value_or(~0u));
    }
};

constexpr std::uint32_t kRead = 2, kSkip = 4, kSelect = 8, kWrite = 16;

} // namespace

TEST_CASE_FIXTURE(Rig, "fw_cfg: signature and feature bits identify the device") {
    select(FwCfg::Signature);
    CHECK(read(4) == "QEMU");
    select(FwCfg::Id);
    CHECK(read(4) == std::string("\x03\0\0\0", 4));
    CHECK(fw.io_read({4, 4}) == std::byteswap(0x5145'4d55u));
    CHECK(fw.io_read({8, 4}) == std::byteswap(0x2043'4647u));
}

TEST_CASE_FIXTURE(Rig, "fw_cfg: the directory lists files by size, key and name, big-endian") {
    REQUIRE(fw.add_file("etc/one", bytes("hello")));
    REQUIRE(fw.add_file("opt/two", bytes("xy")));
    select(FwCfg::FileDirectory);
    const auto directory = read(4 + 2 * 64);
    CHECK(directory.substr(0, 4) == std::string("\0\0\0\2", 4));
    CHECK(directory.substr(4, 8) == std::string("\0\0\0\5\0\x20\0\0", 8));
    CHECK(std::string{directory.c_str() + 12} == "etc/one");
    CHECK(std::string{directory.c_str() + 76} == "opt/two");
    select(0x21);
    CHECK(read(2) == "xy");
}

TEST_CASE_FIXTURE(Rig, "fw_cfg: reads beyond the end and of unknown items are zeros") {
    REQUIRE(fw.add_file("a", bytes("z")));
    select(0x20);
    CHECK(read(3) == std::string("z\0\0", 3));
    select(0x7777);
    CHECK(read(2) == std::string("\0\0", 2));
}

TEST_CASE_FIXTURE(Rig, "fw_cfg: DMA selects, skips and reads into guest memory") {
    REQUIRE(fw.add_file("a", bytes("0123456789")));
    REQUIRE(memory->store<std::uint64_t>({0x2000}, ~0ull));
    CHECK(dma(0x20u << 16 | kSelect | kSkip, 4, 0) == 0);
    CHECK(dma(kRead, 4, 0x2000) == 0);
    CHECK(memory->load<std::uint64_t>({0x2000}).value_or(0) == 0xffff'ffff'3736'3534);
    CHECK(dma(kRead, 4, 0x2000) == 0); // two bytes left, then zeros
    CHECK(memory->load<std::uint64_t>({0x2000}).value_or(0) == 0xffff'ffff'0000'3938);
}

TEST_CASE_FIXTURE(Rig, "fw_cfg: DMA outside RAM and writes report the error bit") {
    CHECK(dma(FwCfg::Signature << 16 | kSelect | kRead, 4, 0xfffff) == 1);
    CHECK(dma(kRead, 0xffff'ffff, 0x2000) == 1);
    CHECK(dma(kRead, 4, ~0ull) == 1);
    CHECK(dma(kWrite, 4, 0x2000) == 1);
    fw.io_write({4, 4}, 0xffff'ffff);
    fw.io_write({8, 4}, 0xffff'ffff); // a request outside RAM goes nowhere
}

TEST_CASE_FIXTURE(Rig, "fw_cfg: bad and double names are refused") {
    CHECK(!fw.add_file("", {}));
    CHECK(!fw.add_file(std::string(56, 'x'), {}));
    CHECK(fw.add_file(std::string(55, 'x'), {}));
    CHECK(!fw.add_file(std::string(55, 'x'), {}));
}
