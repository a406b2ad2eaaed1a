// SPDX-License-Identifier: Apache-2.0
#include "chardev/file_sink.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <fmt/core.h>

#include "base/log.hpp"

namespace doppel::chardev {

base::Result<std::unique_ptr<FileSink>> FileSink::create(const std::string& path) {
    base::UniqueFd fd{::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666)};
    if (!fd)
        return base::fail_errno(errno, fmt::format("open console file '{}'", path));
    return std::unique_ptr<FileSink>{new FileSink{std::move(fd)}};
}

void FileSink::write(std::span<const std::byte> bytes) noexcept {
    while (!bytes.empty()) {
        const auto n = ::write(fd_.get(), bytes.data(), bytes.size());
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            static base::RateLimit limit{1};
            if (limit.allow())
                base::log_warning("console output is lost: {}", std::strerror(errno));
            return;
        }
        bytes = bytes.subspan(static_cast<std::size_t>(n));
    }
}

} // namespace doppel::chardev
