// SPDX-License-Identifier: Apache-2.0
#include "block/crypto/luks_header.hpp"

#include <algorithm>
#include <cstring>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::block::crypto {

namespace {

using base::load_be;
using base::store_be;

constexpr std::array<unsigned char, 6> LUKS_MAGIC{'L', 'U', 'K', 'S', 0xba, 0xbe};
constexpr std::uint32_t LUKS_KEY_ENABLED = 0x00ac71f3;
constexpr std::uint32_t LUKS_KEY_DISABLED = 0x0000dead;
constexpr std::size_t kNameBytes = 32;
constexpr std::size_t kUuidBytes = 40;
constexpr std::size_t kSlotsAt = 208;
constexpr std::size_t kSlotBytes = 48;
constexpr std::uint64_t kAlignment = 4096;

std::string text_at(std::span<const std::byte> head, std::size_t at, std::size_t size) {
    const auto* begin = reinterpret_cast<const char*>(head.data()) + at;
    return {begin, ::strnlen(begin, size)};
}

std::unexpected<base::Error> corrupt(std::string text) {
    return base::fail(Errc::Corrupt, "the LUKS header is damaged: " + std::move(text));
}

KeySlot parse_slot(const std::byte* at) {
    KeySlot slot;
    slot.rounds = load_be<std::uint32_t>(at + 4);
    std::memcpy(slot.salt.data(), at + 8, slot.salt.size());
    slot.material_sector = load_be<std::uint32_t>(at + 40);
    slot.stripes = load_be<std::uint32_t>(at + 44);
    return slot;
}

/// Active slots must lie where nothing else does.
Result<void> check_slots(const LuksHeader& header) {
    for (std::size_t i = 0; i < kKeySlots; ++i) {
        const auto& slot = header.slots[i];
        const auto begin = std::uint64_t{slot.material_sector} * kSectorBytes;
        const auto end = begin + header.material_bytes(slot);
        if (slot.stripes == 0 || slot.stripes > 10 * kStripes)
            return corrupt(fmt::format("key slot {} has {} stripes", i, slot.stripes));
        if (begin < kLuksHeaderBytes || end > header.payload_bytes())
            return corrupt(
                fmt::format("the key material of slot {} lies at {}..{}", i, begin, end));
        for (std::size_t other = 0; other < i; ++other) {
            const auto from = std::uint64_t{header.slots[other].material_sector} * kSectorBytes;
            if (begin < from + header.material_bytes(header.slots[other]) && from < end)
                return corrupt(fmt::format("key slots {} and {} overlap", other, i));
        }
        if (slot.active && (slot.rounds == 0 || slot.rounds > kMaxRounds))
            return corrupt(fmt::format("key slot {} wants {} rounds, allowed are 1 to {}", i,
                                       slot.rounds, kMaxRounds));
    }
    return {};
}

} // namespace

std::uint64_t LuksHeader::material_bytes(const KeySlot& slot) const {
    return base::align_up(std::uint64_t{slot.stripes} * cipher.key_bytes, kSectorBytes);
}

bool is_luks(std::span<const std::byte> head) {
    return head.size() >= 8 && std::memcmp(head.data(), LUKS_MAGIC.data(), LUKS_MAGIC.size()) == 0;
}

Result<LuksHeader> parse_luks(std::span<const std::byte> head, std::uint64_t area_bytes) {
    if (!is_luks(head))
        return corrupt("its magic number is missing");
    if (const auto version = load_be<std::uint16_t>(head.data() + 6); version != 1)
        return base::fail(Errc::Unsupported,
                          fmt::format("LUKS version {} is not known here, 1 is", version));
    if (head.size() < kLuksHeaderBytes)
        return corrupt(fmt::format("it has {} bytes", head.size()));
    LuksHeader header;
    header.cipher =
        DOPPEL_TRY(CipherSpec::parse(text_at(head, 8, kNameBytes), text_at(head, 40, kNameBytes),
                                     load_be<std::uint32_t>(head.data() + 108)));
    header.hash = text_at(head, 72, kNameBytes);
    header.payload_sector = load_be<std::uint32_t>(head.data() + 104);
    std::memcpy(header.digest.data(), head.data() + 112, kDigestBytes);
    std::memcpy(header.digest_salt.data(), head.data() + 132, kSaltBytes);
    header.digest_rounds = load_be<std::uint32_t>(head.data() + 164);
    header.uuid = text_at(head, 168, kUuidBytes);
    if (header.payload_bytes() > area_bytes)
        return corrupt(fmt::format("the data begins at {}, and there are {} bytes",
                                   header.payload_bytes(), area_bytes));
    if (header.digest_rounds == 0 || header.digest_rounds > kMaxRounds)
        return corrupt(fmt::format("the key's digest wants {} rounds", header.digest_rounds));
    for (std::size_t i = 0; i < kKeySlots; ++i) {
        const auto* at = head.data() + kSlotsAt + i * kSlotBytes;
        header.slots[i] = parse_slot(at);
        const auto state = load_be<std::uint32_t>(at);
        header.slots[i].active = state == LUKS_KEY_ENABLED;
        if (state != LUKS_KEY_ENABLED && state != LUKS_KEY_DISABLED)
            return corrupt(fmt::format("key slot {} is in state {:#x}", i, state));
    }
    DOPPEL_TRY_VOID(check_slots(header));
    return header;
}

std::array<std::byte, kLuksHeaderBytes> serialize_luks(const LuksHeader& header) {
    std::array<std::byte, kLuksHeaderBytes> out{};
    const auto put_text = [&](std::size_t at, const std::string& text, std::size_t room) {
        std::memcpy(out.data() + at, text.data(), std::min(text.size(), room - 1));
    };
    std::memcpy(out.data(), LUKS_MAGIC.data(), LUKS_MAGIC.size());
    store_be(out.data() + 6, std::uint16_t{1});
    put_text(8, header.cipher.cipher_name(), kNameBytes);
    put_text(40, header.cipher.mode_name(), kNameBytes);
    put_text(72, header.hash, kNameBytes);
    store_be(out.data() + 104, header.payload_sector);
    store_be(out.data() + 108, static_cast<std::uint32_t>(header.cipher.key_bytes));
    std::memcpy(out.data() + 112, header.digest.data(), kDigestBytes);
    std::memcpy(out.data() + 132, header.digest_salt.data(), kSaltBytes);
    store_be(out.data() + 164, header.digest_rounds);
    put_text(168, header.uuid, kUuidBytes);
    for (std::size_t i = 0; i < kKeySlots; ++i) {
        auto* at = out.data() + kSlotsAt + i * kSlotBytes;
        const auto& slot = header.slots[i];
        store_be(at, slot.active ? LUKS_KEY_ENABLED : LUKS_KEY_DISABLED);
        store_be(at + 4, slot.rounds);
        std::memcpy(at + 8, slot.salt.data(), kSaltBytes);
        store_be(at + 40, slot.material_sector);
        store_be(at + 44, slot.stripes);
    }
    return out;
}

void place_slots(LuksHeader& header) {
    auto at = kAlignment;
    for (auto& slot : header.slots) {
        slot.stripes = kStripes;
        slot.material_sector = static_cast<std::uint32_t>(at / kSectorBytes);
        at += base::align_up(header.material_bytes(slot), kAlignment);
    }
    header.payload_sector = static_cast<std::uint32_t>(at / kSectorBytes);
}

} // namespace doppel::block::crypto
