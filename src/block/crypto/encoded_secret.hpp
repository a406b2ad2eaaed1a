// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Secrets that are handed over encoded or encrypted. Any thread.
#include "block/crypto/gnutls.hpp"
#include "block/secret.hpp"

namespace doppel::block::crypto {

/// RFC 4648 with padding; blanks and line ends are skipped. Error: what is not base64.
base::Result<Secret> decode_base64(std::span<const std::byte> text);
/// AES-256-CBC with PKCS #7 padding. Errors: the sizes of key (32), `iv` (16) and text are wrong,
/// or the padding is: the key is another one.
base::Result<Secret> decrypt_secret(std::span<const std::byte> key, std::span<const std::byte> iv,
                                    Secret text);

} // namespace doppel::block::crypto
