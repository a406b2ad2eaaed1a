// SPDX-License-Identifier: Apache-2.0
#include "block/crypto/luks_volume.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/uuid.hpp"

namespace doppel::block::crypto {

namespace {

constexpr std::uint32_t kDigestShare = 8; // the digest costs an eighth of a slot, as QEMU has it

bool same(std::span<const std::byte> a, std::span<const std::byte> b) {
    return std::ranges::equal(a, b);
}

} // namespace

Result<LuksHeader> LuksVolume::plan(const LuksOptions& options) {
    LuksHeader header;
    header.cipher = options.cipher;
    header.hash = options.hash;
    DOPPEL_TRY(Hash::find(options.hash));
    place_slots(header);
    return header;
}

Task<std::unique_ptr<LuksVolume>> LuksVolume::load(IoContext& context, Node& file,
                                                   std::uint64_t begin, std::uint64_t area_bytes) {
    std::vector<std::byte> head(std::min<std::uint64_t>(kLuksHeaderBytes, area_bytes));
    DOPPEL_AWAIT_VOID(file.read(begin, IoBuffer{head}));
    DOPPEL_CO_TRY(header, parse_luks(head, area_bytes));
    std::unique_ptr<LuksVolume> volume{new LuksVolume{context, file, begin}};
    volume->header_ = std::move(header);
    co_return volume;
}

Task<std::unique_ptr<LuksVolume>> LuksVolume::create(IoContext& context, Node& file,
                                                     std::uint64_t begin, LuksOptions options,
                                                     Secret passphrase) {
    std::unique_ptr<LuksVolume> volume{new LuksVolume{context, file, begin}};
    DOPPEL_CO_TRY(header, plan(options));
    DOPPEL_CO_TRY(hash, Hash::find(options.hash));
    header.uuid = uuid_text(random_uuid());
    volume->key_ = Secret{options.cipher.key_bytes};
    DOPPEL_CO_TRY_VOID(fill_random(volume->key_.span()));
    DOPPEL_CO_TRY_VOID(fill_random(header.digest_salt));
    Result<void> outcome;
    auto wait = context.on_worker([&] {
        outcome = [&]() -> Result<void> {
            const auto rounds =
                DOPPEL_TRY(rounds_for(hash, kDigestBytes, options.time / kDigestShare));
            const auto digest = DOPPEL_TRY(
                derive_key(hash, volume->key_.span(), header.digest_salt, rounds, kDigestBytes));
            header.digest_rounds = rounds;
            std::ranges::copy(digest.span(), header.digest.begin());
            return {};
        }();
    });
    co_await wait;
    DOPPEL_CO_TRY_VOID(outcome);
    volume->header_ = std::move(header);
    const std::vector<std::byte> blank(volume->header_.payload_bytes());
    DOPPEL_AWAIT_VOID(file.write(begin, IoBuffer::of(blank), Durability::Cached));
    DOPPEL_AWAIT_VOID(volume->fill_slot(0, passphrase.span(), options.time));
    co_return volume;
}

EncryptionInfo LuksVolume::info() const {
    const auto mode = header_.cipher.mode_name();
    const auto dash = mode.find('-');
    const bool essiv = mode.ends_with("essiv:sha256");
    const bool xts = header_.cipher.mode == CipherSpec::Mode::Xts;
    EncryptionInfo info;
    info.cipher_mode = mode.substr(0, dash);
    info.iv_algorithm = essiv ? "essiv" : mode.substr(dash + 1);
    info.iv_hash = essiv ? "sha256" : "";
    info.cipher = fmt::format("aes-{}", header_.cipher.key_bytes * 8 / (xts ? 2 : 1));
    info.hash = header_.hash;
    info.uuid = header_.uuid;
    info.payload_offset = header_.payload_bytes();
    info.master_key_rounds = header_.digest_rounds;
    for (const auto& slot : header_.slots)
        info.slots.push_back({slot.active, slot.rounds,
                              std::uint64_t{slot.material_sector} * kSectorBytes, slot.stripes});
    return info;
}

/// On a worker: what the passphrase makes of the slot's material, if it is the volume's key.
Result<bool> LuksVolume::try_key(const KeySlot& slot, std::span<const std::byte> passphrase,
                                 std::span<std::byte> material, Secret& key) const {
    const auto hash = DOPPEL_TRY(Hash::find(header_.hash));
    const auto key_bytes = header_.cipher.key_bytes;
    auto derived = DOPPEL_TRY(derive_key(hash, passphrase, slot.salt, slot.rounds, key_bytes));
    const auto cipher = DOPPEL_TRY(SectorCipher::create(header_.cipher, std::move(derived)));
    cipher->decrypt(0, material);
    auto found = DOPPEL_TRY(merge(hash, material, key_bytes, slot.stripes));
    const auto digest = DOPPEL_TRY(
        derive_key(hash, found.span(), header_.digest_salt, header_.digest_rounds, kDigestBytes));
    if (!same(digest.span(), header_.digest))
        return false;
    key = std::move(found);
    return true;
}

Task<bool> LuksVolume::open_slot(unsigned slot, std::span<const std::byte> passphrase,
                                 Secret& key) {
    const auto& one = header_.slots[slot];
    Secret material{header_.material_bytes(one)};
    DOPPEL_AWAIT_VOID(file_.read(place(one), IoBuffer{material.span()}));
    Result<bool> outcome = false;
    auto wait =
        context_.on_worker([&] { outcome = try_key(one, passphrase, material.span(), key); });
    co_await wait;
    co_return outcome;
}

Task<void> LuksVolume::unlock(const Secret& passphrase) {
    for (unsigned slot = 0; slot < kKeySlots; ++slot) {
        if (!header_.slots[slot].active)
            continue;
        DOPPEL_AWAIT(opened, open_slot(slot, passphrase.span(), key_));
        if (opened)
            co_return {};
    }
    co_return base::fail(Errc::PermissionDenied,
                         "the passphrase is wrong: it opens none of the key slots");
}

Result<std::unique_ptr<SectorCipher>> LuksVolume::cipher() const {
    return SectorCipher::create(header_.cipher, Secret::of(key_.span()));
}

Task<void> LuksVolume::write_header() {
    const auto bytes = serialize_luks(header_);
    DOPPEL_AWAIT_VOID(file_.write(begin_, IoBuffer::of(bytes), Durability::Durable));
    co_return {};
}

/// On a worker.
Result<Secret> LuksVolume::make_material(KeySlot& slot, std::span<const std::byte> passphrase,
                                         std::chrono::milliseconds time) const {
    const auto hash = DOPPEL_TRY(Hash::find(header_.hash));
    const auto key_bytes = header_.cipher.key_bytes;
    DOPPEL_TRY_VOID(fill_random(slot.salt));
    slot.rounds = DOPPEL_TRY(rounds_for(hash, key_bytes, time));
    auto derived = DOPPEL_TRY(derive_key(hash, passphrase, slot.salt, slot.rounds, key_bytes));
    const auto cipher = DOPPEL_TRY(SectorCipher::create(header_.cipher, std::move(derived)));
    auto material = DOPPEL_TRY(split(hash, key_.span(), slot.stripes));
    cipher->encrypt(0, material.span());
    return material;
}

/// The slot counts once its material is durable. Unlocked.
Task<void> LuksVolume::fill_slot(unsigned number, std::span<const std::byte> passphrase,
                                 std::chrono::milliseconds time) {
    auto slot = header_.slots[number];
    Result<Secret> material = Secret{};
    auto wait = context_.on_worker([&] { material = make_material(slot, passphrase, time); });
    co_await wait;
    if (!material)
        co_return std::unexpected(std::move(material).error());
    DOPPEL_AWAIT_VOID(
        file_.write(place(slot), IoBuffer::of(material->span()), Durability::Durable));
    slot.active = true;
    header_.slots[number] = slot;
    DOPPEL_AWAIT_VOID(write_header());
    co_return {};
}

Result<unsigned> LuksVolume::choose_slot(const KeyChange& change) const {
    if (change.slot) {
        if (header_.slots[*change.slot].active && !change.force)
            return base::fail(Errc::AlreadyExists,
                              fmt::format("key slot {} has a passphrase", *change.slot),
                              "Remove it first, or use --force to replace it.");
        return *change.slot;
    }
    const auto free = std::ranges::find(header_.slots, false, &KeySlot::active);
    if (free == header_.slots.end())
        return base::fail(Errc::NoSpace, "all key slots have a passphrase",
                          "Remove one first (state=inactive).");
    return static_cast<unsigned>(free - header_.slots.begin());
}

Task<void> LuksVolume::add(KeyChange& change) {
    if (!unlocked() && change.old)
        DOPPEL_AWAIT_VOID(unlock(*change.old));
    if (!unlocked())
        co_return base::fail(Errc::PermissionDenied,
                             "a passphrase is added with one that opens the volume now",
                             "Name its secret: key-secret of --image-opts, or old-secret.");
    DOPPEL_CO_TRY(slot, choose_slot(change));
    DOPPEL_AWAIT_VOID(fill_slot(slot, change.fresh.span(), change.time));
    co_return {};
}

Task<std::vector<unsigned>> LuksVolume::slots_to_remove(const KeyChange& change) {
    std::vector<unsigned> found;
    for (unsigned slot = 0; slot < kKeySlots; ++slot) {
        if (!header_.slots[slot].active || (change.slot && *change.slot != slot))
            continue;
        if (change.old) {
            Secret key;
            DOPPEL_AWAIT(opened, open_slot(slot, change.old->span(), key));
            if (!opened)
                continue;
        }
        found.push_back(slot);
    }
    if (found.empty())
        co_return base::fail(Errc::NotFound, change.old
                                                 ? "the old passphrase opens none of these slots"
                                                 : "that key slot has no passphrase");
    co_return found;
}

/// A slot that is no longer named has no passphrase; then what it held is overwritten.
Task<void> LuksVolume::remove(const KeyChange& change) {
    DOPPEL_AWAIT(going, slots_to_remove(change));
    const auto active = std::ranges::count(header_.slots, true, &KeySlot::active);
    if (static_cast<std::size_t>(active) == going.size() && !change.force)
        co_return base::fail(Errc::InvalidArgument,
                             "no passphrase would be left: the data would be lost for ever",
                             "Add another one first, or use --force.");
    for (const auto slot : going) {
        auto& one = header_.slots[slot];
        one.active = false;
        one.rounds = 0;
        one.salt = {};
    }
    DOPPEL_AWAIT_VOID(write_header());
    for (const auto slot : going) {
        std::vector<std::byte> noise(header_.material_bytes(header_.slots[slot]));
        DOPPEL_CO_TRY_VOID(fill_random(noise));
        DOPPEL_AWAIT_VOID(
            file_.write(place(header_.slots[slot]), IoBuffer::of(noise), Durability::Durable));
    }
    co_return {};
}

Task<void> LuksVolume::change(KeyChange change) {
    auto task = change.kind == KeyChange::Kind::Add ? add(change) : remove(change);
    auto outcome = co_await task;
    co_return outcome;
}

} // namespace doppel::block::crypto
