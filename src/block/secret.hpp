// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Passphrases and keys in memory: never copied, wiped when they are no longer needed.
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.hpp"

namespace doppel::block {

/// Owner thread only.
class Secret {
public:
    Secret() = default;
    explicit Secret(std::size_t size) : bytes_{std::make_unique<std::byte[]>(size)}, size_{size} {}
    static Secret of(std::span<const std::byte> bytes) {
        Secret secret{bytes.size()};
        std::memcpy(secret.bytes_.get(), bytes.data(), bytes.size());
        return secret;
    }
    static Secret of(std::string_view text) {
        return of(std::as_bytes(std::span{text.data(), text.size()}));
    }
    Secret(Secret&& other) noexcept
        : bytes_{std::move(other.bytes_)}, size_{std::exchange(other.size_, 0)} {}
    Secret& operator=(Secret&& other) noexcept {
        wipe();
        bytes_ = std::move(other.bytes_);
        size_ = std::exchange(other.size_, 0);
        return *this;
    }
    Secret(const Secret&) = delete;
    Secret& operator=(const Secret&) = delete;
    ~Secret() { wipe(); }

    std::span<std::byte> span() noexcept { return {bytes_.get(), size_}; }
    std::span<const std::byte> span() const noexcept { return {bytes_.get(), size_}; }
    std::size_t size() const noexcept { return size_; }
    /// Forgets what lies behind the first `size` bytes.
    void shorten(std::size_t size) noexcept {
        ::explicit_bzero(bytes_.get() + size, size_ - size);
        size_ = size;
    }

private:
    void wipe() noexcept {
        if (bytes_)
            ::explicit_bzero(bytes_.get(), size_);
    }
    std::unique_ptr<std::byte[]> bytes_;
    std::size_t size_ = 0;
};

/// Where the secrets are that images are opened with. Owner thread only.
class SecretSource {
public:
    virtual ~SecretSource() = default;
    /// Errors: there is none of that name; it cannot be read.
    virtual base::Result<Secret> secret(const std::string& id) const = 0;
};

} // namespace doppel::block
