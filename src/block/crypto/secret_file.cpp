// SPDX-License-Identifier: Apache-2.0
#include "block/crypto/secret_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include <fmt/core.h>

#include "base/unique_fd.hpp"
#include "block/crypto/encoded_secret.hpp"

namespace doppel::block::crypto {

namespace {
constexpr std::size_t kMaxSecret = 64u << 10;
} // namespace

base::Result<Secret> read_secret_file(const std::string& path) {
    const base::UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!fd)
        return base::fail_errno(errno, fmt::format("open '{}'", path));
    Secret secret{kMaxSecret};
    std::size_t size = 0;
    while (size < kMaxSecret) {
        const auto got = ::read(fd.get(), secret.span().data() + size, kMaxSecret - size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return base::fail_errno(errno, fmt::format("read '{}'", path));
        if (got == 0)
            break;
        size += static_cast<std::size_t>(got);
    }
    if (size == kMaxSecret)
        return base::fail(base::Errc::InvalidArgument,
                          fmt::format("'{}' is too long for a secret", path),
                          fmt::format("At most {} bytes.", kMaxSecret - 1));
    secret.shorten(size);
    return secret;
}

base::Result<Secret> SecretFiles::secret(const std::string& id) const {
    const auto found = files_.find(id);
    if (found == files_.end())
        return base::fail(base::Errc::InvalidArgument,
                          fmt::format("there is no secret with the id '{}'", id));
    auto secret = DOPPEL_TRY(read_secret_file(found->second.path));
    if (found->second.base64)
        return decode_base64(secret.span());
    return secret;
}

} // namespace doppel::block::crypto
