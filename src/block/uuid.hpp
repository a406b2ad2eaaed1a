// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The 16 bytes by which images know each other. Any thread.
#include <array>
#include <cstddef>
#include <string>

namespace doppel::block {

using Uuid = std::array<std::byte, 16>;

/// Version 4 (RFC 4122), from the system's random numbers.
Uuid random_uuid();
/// As text, when the first three fields are little-endian, as VirtualBox and Windows store them.
std::string guid_text(const Uuid& uuid);
/// As text, when all fields are big-endian, as VHD stores them.
std::string uuid_text(Uuid uuid);

} // namespace doppel::block
