// SPDX-License-Identifier: Apache-2.0
#include "block/crypto/key_material.hpp"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::block::crypto {

namespace {

constexpr std::uint32_t kLeastRounds = 1000; // as the specification advises
constexpr double kLeastSeconds = 0.005;      // of a measurement
constexpr double kMostSeconds = 0.05;

gnutls_datum_t datum(std::span<const std::byte> bytes) {
    return {reinterpret_cast<unsigned char*>(const_cast<std::byte*>(bytes.data())),
            static_cast<unsigned>(bytes.size())};
}

void add(std::span<std::byte> into, std::span<const std::byte> from) {
    for (std::size_t i = 0; i < into.size(); ++i)
        into[i] ^= from[i];
}

/// Each piece of the hash's length becomes the hash of its number and itself.
void diffuse(const Gnutls& gnutls, const Hash& hash, std::span<std::byte> block) {
    Secret numbered{4 + hash.bytes};
    Secret digest{hash.bytes};
    for (std::size_t at = 0, number = 0; at < block.size(); at += hash.bytes, ++number) {
        const auto piece = block.subspan(at, std::min(hash.bytes, block.size() - at));
        base::store_be(numbered.span().data(), static_cast<std::uint32_t>(number));
        std::memcpy(numbered.span().data() + 4, piece.data(), piece.size());
        gnutls.hash_fast(hash.digest, numbered.span().data(), 4 + piece.size(),
                         digest.span().data());
        std::memcpy(piece.data(), digest.span().data(), piece.size());
    }
}

/// CPU time of this thread: others may want the processor, too.
double thread_seconds() {
    timespec now{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

} // namespace

Result<Hash> Hash::find(const std::string& name) {
    struct Known {
        const char* name;
        Hash hash;
    };
    constexpr std::array<Known, 6> kKnown{{{"sha1", {GNUTLS_DIG_SHA1, 20}},
                                           {"sha224", {GNUTLS_DIG_SHA224, 28}},
                                           {"sha256", {GNUTLS_DIG_SHA256, 32}},
                                           {"sha384", {GNUTLS_DIG_SHA384, 48}},
                                           {"sha512", {GNUTLS_DIG_SHA512, 64}},
                                           {"ripemd160", {GNUTLS_DIG_RMD160, 20}}}};
    for (const auto& known : kKnown)
        if (name == known.name)
            return known.hash;
    return base::fail(Errc::Unsupported, fmt::format("hash '{}' is not known here", name),
                      "Known are sha1, sha224, sha256, sha384, sha512 and ripemd160.");
}

Result<Secret> derive_key(const Hash& hash, std::span<const std::byte> passphrase,
                          std::span<const std::byte> salt, std::uint32_t rounds,
                          std::size_t bytes) {
    const auto* gnutls = DOPPEL_TRY(Gnutls::load());
    const auto secret = datum(passphrase);
    const auto with = datum(salt);
    Secret key{bytes};
    // GnuTLS numbers digests and MACs alike.
    const auto mac = static_cast<gnutls_mac_algorithm_t>(hash.digest);
    const int error = gnutls->pbkdf2(mac, &secret, &with, rounds, key.span().data(), bytes);
    if (error != 0)
        return base::fail(Errc::Internal, fmt::format("PBKDF2: {}", gnutls->strerror(error)));
    return key;
}

Result<std::uint32_t> rounds_for(const Hash& hash, std::size_t bytes,
                                 std::chrono::milliseconds time) {
    const std::array<std::byte, kSaltBytes> salt{};
    const auto seconds = std::chrono::duration<double>(time).count();
    const auto enough = std::clamp(seconds, kLeastSeconds, kMostSeconds);
    for (std::uint32_t rounds = 1 << 14;; rounds *= 2) {
        const auto begin = thread_seconds();
        DOPPEL_TRY(derive_key(hash, salt, salt, rounds, bytes));
        const auto took = thread_seconds() - begin;
        if (took < enough && rounds < kMaxRounds / 2)
            continue;
        return static_cast<std::uint32_t>(
            std::clamp(rounds / took * seconds, double{kLeastRounds}, double{kMaxRounds}));
    }
}

Result<Secret> split(const Hash& hash, std::span<const std::byte> key, std::uint32_t stripes) {
    const auto* gnutls = DOPPEL_TRY(Gnutls::load());
    Secret material{base::align_up(key.size() * stripes, kSectorBytes)};
    DOPPEL_TRY_VOID(fill_random(material.span()));
    Secret sum{key.size()};
    for (std::uint32_t i = 0; i + 1 < stripes; ++i) {
        add(sum.span(), material.span().subspan(i * key.size(), key.size()));
        diffuse(*gnutls, hash, sum.span());
    }
    const auto last = material.span().subspan((stripes - 1) * key.size(), key.size());
    std::memcpy(last.data(), sum.span().data(), last.size());
    add(last, key);
    return material;
}

Result<Secret> merge(const Hash& hash, std::span<const std::byte> material, std::size_t key_bytes,
                     std::uint32_t stripes) {
    const auto* gnutls = DOPPEL_TRY(Gnutls::load());
    Secret sum{key_bytes};
    for (std::uint32_t i = 0; i < stripes; ++i) {
        if (i > 0)
            diffuse(*gnutls, hash, sum.span());
        add(sum.span(), material.subspan(i * key_bytes, key_bytes));
    }
    return sum;
}

Result<void> fill_random(std::span<std::byte> bytes) {
    while (!bytes.empty()) {
        const auto got = ::getrandom(bytes.data(), bytes.size(), 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return base::fail_errno(errno, "random bytes from the kernel");
        bytes = bytes.subspan(static_cast<std::size_t>(got));
    }
    return {};
}

} // namespace doppel::block::crypto
