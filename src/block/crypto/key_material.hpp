// SPDX-License-Identifier: Apache-2.0
#pragma once
/// How LUKS makes keys of passphrases, and hides a key in many sectors of which all are needed.
/// Any thread; takes long.
#include <chrono>

#include "block/crypto/luks_header.hpp"

namespace doppel::block::crypto {

/// A hash by its name in a LUKS header: sha1, sha224, sha256, sha384, sha512, ripemd160.
struct Hash {
    gnutls_digest_algorithm_t digest = GNUTLS_DIG_UNKNOWN;
    std::size_t bytes = 0;
    static Result<Hash> find(const std::string& name);
};

Result<Secret> derive_key(const Hash& hash, std::span<const std::byte> passphrase,
                          std::span<const std::byte> salt, std::uint32_t rounds, std::size_t bytes);
/// How many rounds of it take so long on this host; at least 1000.
Result<std::uint32_t> rounds_for(const Hash& hash, std::size_t bytes,
                                 std::chrono::milliseconds time);

/// The anti-forensic splitter: `stripes` times the key's length, each bit of which matters.
Result<Secret> split(const Hash& hash, std::span<const std::byte> key, std::uint32_t stripes);
Result<Secret> merge(const Hash& hash, std::span<const std::byte> material, std::size_t key_bytes,
                     std::uint32_t stripes);

/// Bytes from the kernel's generator.
Result<void> fill_random(std::span<std::byte> bytes);

} // namespace doppel::block::crypto
