// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The cryptography of GnuTLS, by its own names. It is loaded when first asked for: most runs need
/// none of it. Any thread.
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>

#include "base/result.hpp"

namespace doppel::block::crypto {

struct Gnutls {
    decltype(&::gnutls_cipher_init) cipher_init;
    decltype(&::gnutls_cipher_deinit) cipher_deinit;
    decltype(&::gnutls_cipher_set_iv) cipher_set_iv;
    decltype(&::gnutls_cipher_encrypt) cipher_encrypt; // in place
    decltype(&::gnutls_cipher_decrypt) cipher_decrypt;
    decltype(&::gnutls_pbkdf2) pbkdf2;
    decltype(&::gnutls_hash_fast) hash_fast;
    decltype(&::gnutls_strerror) strerror;

    /// Error: it is not installed.
    static base::Result<const Gnutls*> load();
};

} // namespace doppel::block::crypto
