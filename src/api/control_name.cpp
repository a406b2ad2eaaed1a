// SPDX-License-Identifier: Apache-2.0
#include "api/control_name.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#include <fmt/core.h>

namespace doppel::api {

using base::Errc;
using base::Result;
using base::UniqueFd;

namespace {

constexpr std::string_view kSocketSuffix = ".sock";
constexpr std::size_t kMaxNameBytes = 64;
constexpr int kMaxNumber = 1000; // of a name that is chosen here

bool is_folder(const std::string& path) {
    struct stat info{};
    return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

std::string folder_path() {
    const auto uid = ::getuid();
    const char* runtime = std::getenv("XDG_RUNTIME_DIR");
    if (runtime != nullptr && runtime[0] == '/' && is_folder(runtime))
        return fmt::format("{}/doppel", runtime);
    if (const auto run = fmt::format("/run/user/{}", uid);
        is_folder(run) && ::access(run.c_str(), W_OK) == 0)
        return run + "/doppel";
    return fmt::format("/tmp/doppel-{}", uid);
}

Result<sockaddr_un> address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path)
        return base::fail(Errc::OutOfRange,
                          fmt::format("control socket '{}' has a path of more than {} bytes", path,
                                      sizeof address.sun_path - 1),
                          "set XDG_RUNTIME_DIR to a shorter path");
    std::memcpy(address.sun_path, path.data(), path.size());
    return address;
}

const sockaddr* as_sockaddr(const sockaddr_un& address) {
    return static_cast<const sockaddr*>(static_cast<const void*>(&address));
}

Result<void> check_name(const std::string& name) {
    if (name.empty() || name.size() > kMaxNameBytes || name.front() == '.' ||
        name.find('/') != std::string::npos)
        return base::fail(Errc::InvalidArgument, fmt::format("'{}' cannot be a VM's name", name),
                          "use up to 64 letters, digits, '-' and '_'");
    return {};
}

/// The lock file, locked. Empty: somebody else has it.
Result<UniqueFd> lock(const std::string& path) {
    for (;;) {
        UniqueFd fd{::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)};
        if (!fd)
            return base::fail_errno(errno, fmt::format("open lock file '{}'", path));
        if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0)
            return UniqueFd{};
        // Its last owner may have removed the file between our open() and flock().
        struct stat ours{};
        struct stat named{};
        if (::fstat(fd.get(), &ours) == 0 && ::stat(path.c_str(), &named) == 0 &&
            ours.st_ino == named.st_ino && ours.st_dev == named.st_dev)
            return fd;
    }
}

Result<UniqueFd> listen_at(const std::string& path) {
    const auto address = DOPPEL_TRY(address_of(path));
    ::unlink(path.c_str()); // the name is ours, so nobody listens there
    UniqueFd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    if (!fd || ::bind(fd.get(), as_sockaddr(address), sizeof address) != 0 ||
        ::chmod(path.c_str(), 0600) != 0 || ::listen(fd.get(), 16) != 0)
        return base::fail_errno(errno, fmt::format("listen on control socket '{}'", path));
    return fd;
}

} // namespace

Result<std::string> control_folder() {
    auto path = folder_path();
    if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
        return base::fail_errno(errno, fmt::format("make folder '{}'", path));
    struct stat info{};
    if (::lstat(path.c_str(), &info) != 0)
        return base::fail_errno(errno, fmt::format("look at folder '{}'", path));
    if (!S_ISDIR(info.st_mode) || info.st_uid != ::getuid() || (info.st_mode & 077) != 0)
        return base::fail(Errc::PermissionDenied,
                          fmt::format("'{}' is not a folder that only you can enter", path),
                          "remove it, or set XDG_RUNTIME_DIR");
    return path;
}

Result<ControlName> ControlName::claim(const std::string& name) {
    DOPPEL_TRY_VOID(check_name(name));
    ControlName claimed;
    claimed.folder_ = DOPPEL_TRY(control_folder());
    const auto stem = fmt::format("{}/{}", claimed.folder_, name);
    DOPPEL_TRY(address_of(stem + ".sock"));
    claimed.lock_ = DOPPEL_TRY(lock(stem + ".lock"));
    if (!claimed.lock_)
        return base::fail(Errc::Busy, fmt::format("a VM named '{}' runs already", name),
                          "choose another --name, or stop it with 'doppel stop " + name + "'");
    claimed.name_ = name;
    claimed.listener_ = DOPPEL_TRY(listen_at(stem + ".sock"));
    return claimed;
}

Result<ControlName> ControlName::claim_any(const std::string& stem) {
    for (int number = 1;; ++number) {
        auto claimed = claim(number == 1 ? stem : fmt::format("{}-{}", stem, number));
        if (claimed || claimed.error().code != Errc::Busy || number == kMaxNumber)
            return claimed;
    }
}

ControlName::~ControlName() {
    if (!lock_)
        return;
    for (const char* suffix : {".sock", ".lock"}) // the lock last: until then the name is taken
        if (!name_.empty())
            ::unlink(fmt::format("{}/{}{}", folder_, name_, suffix).c_str());
}

Result<std::vector<std::string>> control_names() {
    const auto folder = DOPPEL_TRY(control_folder());
    const std::unique_ptr<DIR, int (*)(DIR*)> entries{::opendir(folder.c_str()), ::closedir};
    if (!entries)
        return base::fail_errno(errno, fmt::format("look into folder '{}'", folder));
    std::vector<std::string> names;
    while (const auto* entry = ::readdir(entries.get())) {
        const std::string_view name{entry->d_name};
        if (name.ends_with(kSocketSuffix))
            names.emplace_back(name.substr(0, name.size() - kSocketSuffix.size()));
    }
    std::ranges::sort(names);
    return names;
}

Result<UniqueFd> connect_to(const std::string& name) {
    DOPPEL_TRY_VOID(check_name(name));
    const auto folder = DOPPEL_TRY(control_folder());
    const auto address = DOPPEL_TRY(address_of(fmt::format("{}/{}.sock", folder, name)));
    UniqueFd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    if (fd && ::connect(fd.get(), as_sockaddr(address), sizeof address) == 0)
        return fd;
    if (errno == ENOENT || errno == ECONNREFUSED)
        return base::fail(Errc::NotFound, fmt::format("no VM named '{}' runs", name),
                          "'doppel ls' shows those that do");
    return base::fail_errno(errno, fmt::format("connect to VM '{}'", name));
}

} // namespace doppel::api
