// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Digests of files, by GnuTLS, which is loaded when first asked for. Owner thread only.
#include <string>
#include <string_view>

#include "block/node.hpp"

namespace doppel::block::ova {

/// Lower-case hexadecimal. `algorithm`: SHA1, SHA256, SHA384, SHA512. Errors: Unsupported: it is
/// another one, or GnuTLS is not installed; what reading says.
Task<std::string> digest_of(Node& file, std::string algorithm);

} // namespace doppel::block::ova
