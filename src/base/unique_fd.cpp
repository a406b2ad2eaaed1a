// SPDX-License-Identifier: Apache-2.0
#include "base/unique_fd.hpp"

#include <unistd.h>

namespace doppel::base {

void UniqueFd::reset(int fd) noexcept {
    if (fd_ >= 0)
        ::close(fd_); // the result says nothing a caller could act on (close(2), EINTR)
    fd_ = fd;
}

} // namespace doppel::base
