// SPDX-License-Identifier: Apache-2.0
#include "block/crypto/encoded_secret.hpp"

#include <algorithm>

#include <fmt/core.h>

namespace doppel::block::crypto {

using base::Errc;

namespace {

constexpr std::size_t kKeyBytes = 32;
constexpr std::size_t kBlock = 16;

int digit(char c) {
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

gnutls_datum_t datum(std::span<const std::byte> bytes) {
    return {reinterpret_cast<unsigned char*>(const_cast<std::byte*>(bytes.data())),
            static_cast<unsigned>(bytes.size())};
}

} // namespace

base::Result<Secret> decode_base64(std::span<const std::byte> text) {
    Secret out{text.size() / 4 * 3 + 3};
    std::size_t size = 0;
    std::uint32_t bits = 0;
    unsigned digits = 0;
    unsigned padding = 0;
    for (const auto byte : text) {
        const auto c = static_cast<char>(byte);
        if (c == ' ' || c == '\n' || c == '\r' || c == '\t')
            continue;
        const int value = digit(c);
        padding += c == '=';
        if ((value < 0 && c != '=') || (padding > 0 && c != '=') || padding > 2)
            return base::fail(Errc::InvalidArgument, "it is not base64");
        bits = bits << 6 | static_cast<std::uint32_t>(std::max(value, 0));
        if (++digits % 4 != 0)
            continue;
        for (unsigned i = 0; i < 3 - padding; ++i)
            out.span()[size++] = static_cast<std::byte>(bits >> (16 - 8 * i));
    }
    if (digits % 4 != 0)
        return base::fail(Errc::InvalidArgument, "it is not base64: its end is missing");
    out.shorten(size);
    return out;
}

base::Result<Secret> decrypt_secret(std::span<const std::byte> key, std::span<const std::byte> iv,
                                    Secret text) {
    if (key.size() != kKeyBytes || iv.size() != kBlock)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("the master key has {} bytes and the iv {}, wanted are {} "
                                      "and {}",
                                      key.size(), iv.size(), kKeyBytes, kBlock));
    if (text.size() == 0 || text.size() % kBlock != 0)
        return base::fail(
            Errc::InvalidArgument,
            fmt::format("{} encrypted bytes are no whole blocks of {}", text.size(), kBlock));
    const auto* gnutls = DOPPEL_TRY(Gnutls::load());
    const auto key_datum = datum(key);
    const auto iv_datum = datum(iv);
    gnutls_cipher_hd_t handle = nullptr;
    if (const int error =
            gnutls->cipher_init(&handle, GNUTLS_CIPHER_AES_256_CBC, &key_datum, &iv_datum);
        error != 0)
        return base::fail(Errc::Unsupported, fmt::format("GnuTLS: {}", gnutls->strerror(error)));
    const int error = gnutls->cipher_decrypt(handle, text.span().data(), text.size());
    gnutls->cipher_deinit(handle);
    const auto padding = std::to_integer<std::size_t>(text.span().back());
    const bool padded = padding >= 1 && padding <= kBlock && padding <= text.size();
    if (error != 0 || !padded || !std::ranges::all_of(text.span().last(padding), [&](std::byte b) {
            return b == text.span().back();
        }))
        return base::fail(Errc::InvalidArgument,
                          "it does not decrypt: the master key or the iv is another one");
    text.shorten(text.size() - padding);
    return text;
}

} // namespace doppel::block::crypto
