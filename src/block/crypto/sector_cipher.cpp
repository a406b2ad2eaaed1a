// SPDX-License-Identifier: Apache-2.0
#include "block/crypto/sector_cipher.hpp"

#include <array>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "base/verify.hpp"

namespace doppel::block::crypto {

namespace {

constexpr std::size_t kAesBlock = 16;

gnutls_cipher_algorithm_t algorithm_of(const CipherSpec& spec) {
    if (spec.mode == CipherSpec::Mode::Xts)
        return spec.key_bytes == 64 ? GNUTLS_CIPHER_AES_256_XTS : GNUTLS_CIPHER_AES_128_XTS;
    return spec.key_bytes == 32   ? GNUTLS_CIPHER_AES_256_CBC
           : spec.key_bytes == 24 ? GNUTLS_CIPHER_AES_192_CBC
                                  : GNUTLS_CIPHER_AES_128_CBC;
}

gnutls_datum_t datum(std::span<std::byte> bytes) {
    return {reinterpret_cast<unsigned char*>(bytes.data()), static_cast<unsigned>(bytes.size())};
}

Result<gnutls_cipher_hd_t> make_handle(const Gnutls& gnutls, gnutls_cipher_algorithm_t algorithm,
                                       std::span<const std::byte> key) {
    std::array<std::byte, kAesBlock> zero{};
    auto with = Secret::of(key);
    const auto key_datum = datum(with.span());
    const auto iv = datum(zero);
    gnutls_cipher_hd_t handle = nullptr;
    if (const int error = gnutls.cipher_init(&handle, algorithm, &key_datum, &iv); error != 0)
        return base::fail(
            Errc::Unsupported,
            fmt::format("GnuTLS does not take the cipher or the key: {}", gnutls.strerror(error)));
    return handle;
}

} // namespace

Result<CipherSpec> CipherSpec::parse(const std::string& cipher, const std::string& mode,
                                     std::size_t key_bytes) {
    CipherSpec spec;
    spec.key_bytes = key_bytes;
    const auto dash = mode.find('-');
    const auto chain = mode.substr(0, dash);
    const auto tweak = dash == std::string::npos ? std::string{} : mode.substr(dash + 1);
    bool known = cipher == "aes" && (chain == "xts" || chain == "cbc");
    spec.mode = chain == "xts" ? Mode::Xts : Mode::Cbc;
    if (tweak == "plain64")
        spec.tweak = Tweak::Plain64;
    else if (tweak == "plain")
        spec.tweak = Tweak::Plain;
    else if (tweak == "essiv:sha256")
        spec.tweak = Tweak::EssivSha256;
    else
        known = false;
    if (!known)
        return base::fail(Errc::Unsupported,
                          fmt::format("cipher '{}-{}' is not known here", cipher, mode),
                          "Known are aes-xts and aes-cbc with plain, plain64 or essiv:sha256.");
    const bool fits = spec.mode == Mode::Xts
                          ? key_bytes == 32 || key_bytes == 64
                          : key_bytes == 16 || key_bytes == 24 || key_bytes == 32;
    if (!fits)
        return base::fail(Errc::Unsupported,
                          fmt::format("{}-{} has no keys of {} bits", cipher, mode, key_bytes * 8));
    return spec;
}

std::string CipherSpec::mode_name() const {
    const auto* chain = mode == Mode::Xts ? "xts" : "cbc";
    switch (tweak) {
    case Tweak::Plain: return fmt::format("{}-plain", chain);
    case Tweak::Plain64: return fmt::format("{}-plain64", chain);
    case Tweak::EssivSha256: return fmt::format("{}-essiv:sha256", chain);
    }
    return {};
}

Result<std::unique_ptr<SectorCipher>> SectorCipher::create(const CipherSpec& spec, Secret key) {
    const auto* gnutls = DOPPEL_TRY(Gnutls::load());
    DOPPEL_VERIFY(key.size() == spec.key_bytes, "the key is as long as it says");
    std::unique_ptr<SectorCipher> cipher{new SectorCipher{*gnutls, spec, std::move(key)}};
    cipher->give_back(DOPPEL_TRY(cipher->make_handles()));
    return cipher;
}

SectorCipher::~SectorCipher() {
    for (const auto& handles : free_)
        drop(handles);
}

void SectorCipher::drop(const Handles& handles) const {
    gnutls_.cipher_deinit(handles.data);
    if (handles.tweak != nullptr)
        gnutls_.cipher_deinit(handles.tweak);
}

Result<SectorCipher::Handles> SectorCipher::make_handles() const {
    Handles handles;
    handles.data = DOPPEL_TRY(make_handle(gnutls_, algorithm_of(spec_), key_.span()));
    if (spec_.tweak != CipherSpec::Tweak::EssivSha256)
        return handles;
    Secret salt{32};
    gnutls_.hash_fast(GNUTLS_DIG_SHA256, key_.span().data(), key_.size(), salt.span().data());
    auto tweak = make_handle(gnutls_, GNUTLS_CIPHER_AES_256_CBC, salt.span());
    if (!tweak) {
        gnutls_.cipher_deinit(handles.data);
        return std::unexpected(std::move(tweak).error());
    }
    handles.tweak = *tweak;
    return handles;
}

SectorCipher::Handles SectorCipher::borrow() const {
    {
        const base::MutexLock lock{mutex_};
        if (!free_.empty()) {
            const auto handles = free_.back();
            free_.pop_back();
            return handles;
        }
    }
    auto fresh = make_handles();
    DOPPEL_VERIFY(fresh, "what worked once works again");
    return *fresh;
}

void SectorCipher::give_back(const Handles& handles) const {
    const base::MutexLock lock{mutex_};
    free_.push_back(handles);
}

void SectorCipher::set_tweak(const Handles& handles, std::uint64_t sector) const {
    std::array<std::byte, kAesBlock> tweak{};
    if (spec_.tweak == CipherSpec::Tweak::Plain)
        base::store_le(tweak.data(), static_cast<std::uint32_t>(sector));
    else
        base::store_le(tweak.data(), sector);
    if (handles.tweak != nullptr) { // one block of AES: CBC behind a zero
        std::array<std::byte, kAesBlock> zero{};
        gnutls_.cipher_set_iv(handles.tweak, zero.data(), zero.size());
        gnutls_.cipher_encrypt(handles.tweak, tweak.data(), tweak.size());
    }
    gnutls_.cipher_set_iv(handles.data, tweak.data(), tweak.size());
}

void SectorCipher::each(std::uint64_t sector, std::span<std::byte> bytes, Step step) const {
    DOPPEL_VERIFY(bytes.size() % kSectorBytes == 0, "whole sectors");
    const auto handles = borrow();
    for (std::size_t at = 0; at < bytes.size(); at += kSectorBytes) {
        set_tweak(handles, sector + at / kSectorBytes);
        const int error = step(handles.data, bytes.data() + at, kSectorBytes);
        DOPPEL_VERIFY(error == 0, "a cipher with a key takes a sector");
    }
    give_back(handles);
}

void SectorCipher::encrypt(std::uint64_t sector, std::span<std::byte> bytes) const {
    each(sector, bytes, gnutls_.cipher_encrypt);
}

void SectorCipher::decrypt(std::uint64_t sector, std::span<std::byte> bytes) const {
    each(sector, bytes, gnutls_.cipher_decrypt);
}

} // namespace doppel::block::crypto
