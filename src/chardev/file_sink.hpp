// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Output appended to a file; no input.
#include <memory>
#include <string>

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "chardev/backend.hpp"

namespace doppel::chardev {

/// Any thread. A disk that fills up loses output, with one line in the log.
class FileSink final : public Backend {
public:
    /// Opens or creates `path` for appending. Errors: of open(2).
    static base::Result<std::unique_ptr<FileSink>> create(const std::string& path);

    void write(std::span<const std::byte> bytes) noexcept override;
    void set_receiver(ByteReceiver*) noexcept override {}
    void receiver_ready() noexcept override {}

private:
    explicit FileSink(base::UniqueFd fd) : fd_{std::move(fd)} {}
    base::UniqueFd fd_;
};

/// Swallows output, has no input.
class NullBackend final : public Backend {
public:
    void write(std::span<const std::byte>) noexcept override {}
    void set_receiver(ByteReceiver*) noexcept override {}
    void receiver_ready() noexcept override {}
};

} // namespace doppel::chardev
