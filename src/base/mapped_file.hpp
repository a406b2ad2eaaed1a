// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A whole file, read-only, by address.
#include <cstddef>
#include <span>
#include <string>

#include "base/result.hpp"

namespace doppel::base {

/// Owner thread only. The file must not shrink while it is mapped.
class MappedFile {
public:
    /// Errors: of open(2); InvalidArgument when it is no regular file or empty.
    static Result<MappedFile> open(const std::string& path);
    MappedFile() = default;
    MappedFile(MappedFile&& other) noexcept : bytes_{std::exchange(other.bytes_, {})} {}
    MappedFile& operator=(MappedFile&& other) noexcept {
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~MappedFile();

    std::span<const std::byte> bytes() const { return bytes_; }
    /// Gives the memory back until the bytes are read again.
    void drop_pages() const;

private:
    std::span<const std::byte> bytes_;
};

} // namespace doppel::base
