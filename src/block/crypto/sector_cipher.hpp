// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Encrypts sectors of 512 bytes, each with its number as the tweak, as dm-crypt does.
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.hpp"
#include "block/crypto/gnutls.hpp"
#include "block/secret.hpp"

namespace doppel::block::crypto {

using base::Errc;
using base::Result;

constexpr std::size_t kSectorBytes = 512;

/// What a LUKS header says, "aes" and "xts-plain64", and the bytes of the key.
struct CipherSpec {
    enum class Mode : std::uint8_t { Xts, Cbc };
    enum class Tweak : std::uint8_t { Plain, Plain64, EssivSha256 };
    Mode mode = Mode::Xts;
    Tweak tweak = Tweak::Plain64;
    std::size_t key_bytes = 64; // of both halves with XTS

    /// Error: a cipher, a mode or a length of the key that is not known here.
    static Result<CipherSpec> parse(const std::string& cipher, const std::string& mode,
                                    std::size_t key_bytes);
    std::string cipher_name() const { return "aes"; }
    std::string mode_name() const;
};

/// Any thread.
class SectorCipher {
public:
    static Result<std::unique_ptr<SectorCipher>> create(const CipherSpec& spec, Secret key);
    ~SectorCipher();
    SectorCipher(const SectorCipher&) = delete;
    SectorCipher& operator=(const SectorCipher&) = delete;

    /// In place; whole sectors, the first of which has this number.
    void encrypt(std::uint64_t sector, std::span<std::byte> bytes) const;
    void decrypt(std::uint64_t sector, std::span<std::byte> bytes) const;

private:
    struct Handles { // for one thread at a time
        gnutls_cipher_hd_t data = nullptr;
        gnutls_cipher_hd_t tweak = nullptr; // ESSIV
    };
    SectorCipher(const Gnutls& gnutls, const CipherSpec& spec, Secret key)
        : gnutls_{gnutls}, spec_{spec}, key_{std::move(key)} {}
    Result<Handles> make_handles() const;
    Handles borrow() const;
    void give_back(const Handles& handles) const;
    void drop(const Handles& handles) const;
    using Step = int (*)(gnutls_cipher_hd_t, void*, std::size_t);
    void each(std::uint64_t sector, std::span<std::byte> bytes, Step step) const;
    void set_tweak(const Handles& handles, std::uint64_t sector) const;

    const Gnutls& gnutls_;
    CipherSpec spec_;
    Secret key_;
    mutable base::Mutex mutex_;
    mutable std::vector<Handles> free_ DOPPEL_GUARDED_BY(mutex_);
};

} // namespace doppel::block::crypto
