// SPDX-License-Identifier: Apache-2.0
#include "block/crypto/gnutls.hpp"

#include <dlfcn.h>

#include <optional>
#include <type_traits>

namespace doppel::block::crypto {

namespace {

constexpr const char* kLibrary = "libgnutls.so.30";

std::optional<Gnutls> load_once() {
    void* library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL); // stays
    if (library == nullptr)
        return std::nullopt;
    Gnutls calls{};
    bool whole = true;
    const auto find = [&](auto& function, const char* name) {
        function =
            reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
        whole = whole && function != nullptr;
    };
    find(calls.cipher_init, "gnutls_cipher_init");
    find(calls.cipher_deinit, "gnutls_cipher_deinit");
    find(calls.cipher_set_iv, "gnutls_cipher_set_iv");
    find(calls.cipher_encrypt, "gnutls_cipher_encrypt");
    find(calls.cipher_decrypt, "gnutls_cipher_decrypt");
    find(calls.pbkdf2, "gnutls_pbkdf2");
    find(calls.hash_fast, "gnutls_hash_fast");
    find(calls.strerror, "gnutls_strerror");
    return whole ? std::optional{calls} : std::nullopt;
}

} // namespace

base::Result<const Gnutls*> Gnutls::load() {
    static const auto kCalls = load_once();
    if (!kCalls)
        return base::fail(base::Errc::Unsupported,
                          std::string{"encryption wants GnuTLS, and there is no "} + kLibrary,
                          "Install the package libgnutls30 (3.6.13 or later).");
    return &*kCalls;
}

} // namespace doppel::block::crypto
