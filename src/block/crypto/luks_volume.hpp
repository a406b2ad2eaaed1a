// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A LUKS header with its key slots where it lies in a node, and the volume's key once a passphrase
/// has opened it. Owner thread only; what takes long runs on workers.
#include <optional>

#include "block/crypto/key_material.hpp"
#include "block/image_node.hpp"
#include "block/io/io_context.hpp"

namespace doppel::block::crypto {

struct LuksOptions {
    CipherSpec cipher;
    std::string hash = "sha256";
    std::chrono::milliseconds time{2000}; // that trying a passphrase shall take
};

/// A change of the key slots.
struct KeyChange {
    enum class Kind : std::uint8_t { Add, Remove };
    Kind kind = Kind::Add;
    Secret fresh;                 // Add: the new passphrase
    std::optional<Secret> old;    // Remove: what opens the slots to go; Add: unlocks the volume
    std::optional<unsigned> slot; // Add: the one to take; Remove: the one to go
    std::chrono::milliseconds time{2000};
    bool force = false; // Add: over another passphrase; Remove: even the last one
};

class LuksVolume {
public:
    /// Reads the header at `begin` of `file`, which outlives this; `area_bytes` belong to it.
    /// `name`: the image's, for messages.
    static Task<std::unique_ptr<LuksVolume>> load(IoContext& context, Node& file,
                                                  std::uint64_t begin, std::uint64_t area_bytes);
    /// A header for a new volume, with a random key that nothing opens yet.
    static Result<LuksHeader> plan(const LuksOptions& options);
    /// Writes such a header, and one key slot for `passphrase`, at `begin`; the volume is unlocked.
    static Task<std::unique_ptr<LuksVolume>> create(IoContext& context, Node& file,
                                                    std::uint64_t begin, LuksOptions options,
                                                    Secret passphrase);

    const LuksHeader& header() const noexcept { return header_; }
    EncryptionInfo info() const;
    bool unlocked() const noexcept { return key_.size() > 0; }
    /// Error PermissionDenied: the passphrase opens no key slot.
    Task<void> unlock(const Secret& passphrase);
    /// Of the data; unlocked.
    Result<std::unique_ptr<SectorCipher>> cipher() const;

    Task<void> change(KeyChange change);

private:
    LuksVolume(IoContext& context, Node& file, std::uint64_t begin)
        : context_{context}, file_{file}, begin_{begin} {}
    Task<bool> open_slot(unsigned slot, std::span<const std::byte> passphrase, Secret& key);
    Result<bool> try_key(const KeySlot& slot, std::span<const std::byte> passphrase,
                         std::span<std::byte> material, Secret& key) const;
    Task<void> add(KeyChange& change);
    Task<void> remove(const KeyChange& change);
    Result<unsigned> choose_slot(const KeyChange& change) const;
    Task<std::vector<unsigned>> slots_to_remove(const KeyChange& change);
    Task<void> fill_slot(unsigned slot, std::span<const std::byte> passphrase,
                         std::chrono::milliseconds time);
    Result<Secret> make_material(KeySlot& slot, std::span<const std::byte> passphrase,
                                 std::chrono::milliseconds time) const;
    Task<void> write_header();
    std::uint64_t place(const KeySlot& slot) const {
        return begin_ + std::uint64_t{slot.material_sector} * kSectorBytes;
    }

    IoContext& context_;
    Node& file_;
    std::uint64_t begin_;
    LuksHeader header_;
    Secret key_;
};

} // namespace doppel::block::crypto
