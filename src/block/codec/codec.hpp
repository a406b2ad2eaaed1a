// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Compression of image clusters. The functions keep a context per thread; any thread.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.hpp"

namespace doppel::block::codec {

enum class Effort : std::uint8_t {
    Fast, // as fast as the disk: ISA-L's igzip (libdeflate without libisal.so.2), zstd level 1
    Best, // small: libdeflate 12, zstd 19
};

/// A raw deflate stream (RFC 1951). Empty when it would not be smaller than `limit` bytes.
std::vector<std::byte> deflate(std::span<const std::byte> data, std::size_t limit, Effort effort);
/// A zlib stream (RFC 1950), whether it is smaller or not.
std::vector<std::byte> zlib(std::span<const std::byte> data, Effort effort);
/// One zstd frame. Empty as above.
std::vector<std::byte> zstd(std::span<const std::byte> data, std::size_t limit, Effort effort);

/// Fills `out` from a raw deflate stream; what follows the stream is ignored. Error Corrupt: the
/// stream is damaged or yields another number of bytes.
base::Result<void> inflate(std::span<const std::byte> stream, std::span<std::byte> out);
/// Fills `out` as far as a zlib stream goes; yields how far. Error Corrupt: it is damaged, or
/// larger.
base::Result<std::size_t> unzlib(std::span<const std::byte> stream, std::span<std::byte> out);
/// As inflate() for a zstd frame.
base::Result<void> unzstd(std::span<const std::byte> stream, std::span<std::byte> out);

} // namespace doppel::block::codec
