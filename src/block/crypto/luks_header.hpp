// SPDX-License-Identifier: Apache-2.0
#pragma once
/// LUKS version 1 on disk (LUKS On-Disk Format Specification, version 1.2.3), as pure data and
/// functions over bytes. Numbers are big-endian, places are counted in sectors of 512 bytes.
/// Any thread.
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "block/crypto/sector_cipher.hpp"

namespace doppel::block::crypto {

constexpr std::size_t kLuksHeaderBytes = 592;
constexpr std::size_t kKeySlots = 8;
constexpr std::size_t kSaltBytes = 32;
constexpr std::size_t kDigestBytes = 20;
constexpr std::uint32_t kStripes = 4000; // of what is made here
/// A file may want more rounds than anybody has time for: these take minutes.
constexpr std::uint32_t kMaxRounds = 1u << 30;

struct KeySlot {
    bool active = false;
    std::uint32_t rounds = 0; // of PBKDF2
    std::array<std::byte, kSaltBytes> salt{};
    std::uint32_t material_sector = 0;
    std::uint32_t stripes = 0;
};

struct LuksHeader {
    CipherSpec cipher;
    std::string hash = "sha256"; // of PBKDF2 and of the anti-forensic splitter
    std::uint32_t payload_sector = 0;
    std::array<std::byte, kDigestBytes> digest{}; // of the volume's key
    std::array<std::byte, kSaltBytes> digest_salt{};
    std::uint32_t digest_rounds = 0;
    std::string uuid;
    std::array<KeySlot, kKeySlots> slots;

    std::uint64_t payload_bytes() const { return std::uint64_t{payload_sector} * kSectorBytes; }
    std::uint64_t material_bytes(const KeySlot& slot) const; // in whole sectors
};

bool is_luks(std::span<const std::byte> head);
/// `area_bytes`: of the header and its key material, which must lie within.
Result<LuksHeader> parse_luks(std::span<const std::byte> head, std::uint64_t area_bytes);
std::array<std::byte, kLuksHeaderBytes> serialize_luks(const LuksHeader& header);
/// Where key material and payload go: as QEMU places them, each on 4 KiB.
void place_slots(LuksHeader& header);

} // namespace doppel::block::crypto
