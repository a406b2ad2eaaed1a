// SPDX-License-Identifier: Apache-2.0
#include "base/result.hpp"

#include <cerrno>
#include <cstring>

#include "base/printable.hpp"

namespace doppel::base {

namespace {

Errc code_of(int os_errno) {
    switch (os_errno) {
    case ENOENT: return Errc::NotFound;
    case EACCES:
    case EPERM:
    case EROFS: return Errc::PermissionDenied;
    case EEXIST: return Errc::AlreadyExists;
    case EBUSY:
    case EAGAIN:
    case EADDRINUSE: return Errc::Busy;
    case EISDIR: // a path that is not what was to be named
    case ENOTDIR:
    case ELOOP:
    case ENAMETOOLONG:
    case EINVAL: return Errc::InvalidArgument;
    case ENOSPC: return Errc::NoSpace;
    case ENOMEM: return Errc::OutOfMemory;
    case EINTR: return Errc::Interrupted;
    default: return Errc::Io;
    }
}

} // namespace

std::string Error::message() const {
    std::string whole = printable(text); // it may hold a name out of a foreign file
    if (os_errno != 0) {
        whole += ": ";
        whole += std::strerror(os_errno);
    }
    if (!hint.empty()) {
        whole += "; ";
        whole += printable(hint);
    }
    return whole;
}

std::unexpected<Error> fail(Errc code, std::string text, std::string hint) {
    return std::unexpected(Error{code, 0, std::move(text), {}, std::move(hint)});
}

std::unexpected<Error> fail_errno(int os_errno, std::string text, std::string hint) {
    return std::unexpected(
        Error{code_of(os_errno), os_errno, std::move(text), {}, std::move(hint)});
}

} // namespace doppel::base
