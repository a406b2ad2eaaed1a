// SPDX-License-Identifier: Apache-2.0
#include "block/file/image_lock.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include <fmt/core.h>

namespace doppel::block {

using base::Errc;
using base::Result;

namespace {

constexpr off_t kPermissionBase = 100;
constexpr off_t kUnsharedBase = 200;
constexpr off_t kConsistentRead = 0;
constexpr off_t kWrite = 1;
constexpr off_t kResize = 3;

constexpr std::array kWriterHolds{kConsistentRead, kWrite, kResize};
constexpr std::array kReaderHolds{kConsistentRead};
constexpr std::array kUnshared{kWrite, kResize};

int lock_byte(int fd, int command, short type, off_t byte, struct flock& lock) {
    lock = {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    return ::fcntl(fd, command, &lock);
}

struct CloseDirectory {
    void operator()(DIR* directory) const { ::closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

std::string read_small_file(const std::string& path) {
    std::string text;
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return text;
    std::array<char, 4096> chunk{};
    for (ssize_t n = 0; (n = ::read(fd, chunk.data(), chunk.size())) > 0;)
        text.append(chunk.data(), static_cast<std::size_t>(n));
    ::close(fd);
    return text;
}

bool is_number(const char* text) {
    return *text != '\0' && std::strspn(text, "0123456789") == std::strlen(text);
}

/// Whether one of the process's descriptors, other than `own_fd` of ourselves, locks the file.
bool process_holds(const std::string& process, const struct stat& image, int own_fd) {
    const Directory descriptors{::opendir((process + "/fd").c_str())};
    if (!descriptors)
        return false;
    const bool own = process == fmt::format("/proc/{}", ::getpid());
    while (const auto* entry = ::readdir(descriptors.get())) {
        if (!is_number(entry->d_name) || (own && entry->d_name == std::to_string(own_fd)))
            continue;
        struct stat other{};
        const std::string number = entry->d_name;
        if (::stat((process + "/fd/" + number).c_str(), &other) != 0 ||
            other.st_dev != image.st_dev || other.st_ino != image.st_ino)
            continue;
        if (read_small_file(process + "/fdinfo/" + number).find("OFDLCK") != std::string::npos)
            return true;
    }
    return false;
}

/// "process 123 (qemu-system-x86)". An OFD lock has no PID of its own, so /proc is searched for
/// the descriptor that carries it; processes of other users stay hidden from an ordinary one.
std::optional<std::string> find_holder(int fd) {
    struct stat image{};
    const Directory processes{::opendir("/proc")};
    if (::fstat(fd, &image) != 0 || !processes)
        return std::nullopt;
    while (const auto* entry = ::readdir(processes.get())) {
        const std::string process = std::string{"/proc/"} + entry->d_name;
        if (!is_number(entry->d_name) || !process_holds(process, image, fd))
            continue;
        auto command = read_small_file(process + "/comm");
        while (!command.empty() && command.back() == '\n')
            command.pop_back();
        return fmt::format("process {} ({})", entry->d_name, command);
    }
    return std::nullopt;
}

/// What to do about it. Nobody can end the holder when it is the very command that complains.
std::string way_out(std::string_view holder, bool by_writer) {
    if (holder.starts_with(fmt::format("process {} ", ::getpid())))
        return "That is this command itself: an image that is written cannot be named twice.";
    if (by_writer)
        return "End it first, or read it unlocked with -U (the content may be inconsistent).";
    return "End it first: this operation writes to the image.";
}

std::unexpected<base::Error> in_use(int fd, const std::string& path, bool by_writer) {
    const auto holder = find_holder(fd).value_or("another process");
    return base::fail(Errc::Busy,
                      fmt::format("'{}' is in use by {}{}", path, holder,
                                  by_writer ? ", which writes to it" : ""),
                      way_out(holder, by_writer));
}

/// Held by someone else?
Result<bool> taken(int fd, const std::string& path, off_t byte) {
    struct flock lock{};
    if (lock_byte(fd, F_OFD_GETLK, F_WRLCK, byte, lock) != 0)
        return base::fail_errno(errno, fmt::format("look at the locks of '{}'", path));
    return lock.l_type != F_UNLCK;
}

} // namespace

Result<void> lock_image(int fd, const std::string& path, Access access) {
    const bool writer = access == Access::ReadWrite;
    const auto holds = writer ? std::span<const off_t>{kWriterHolds} : std::span{kReaderHolds};
    struct flock lock{};
    const auto take = [&](off_t byte) -> Result<void> {
        if (lock_byte(fd, F_OFD_SETLK, F_RDLCK, byte, lock) == 0)
            return {};
        if (errno == EAGAIN || errno == EACCES)
            return in_use(fd, path, !writer);
        return base::fail_errno(errno, fmt::format("lock '{}'", path));
    };
    // First take, then look: two openers at the same time may both fail, never both succeed.
    for (const auto permission : holds)
        DOPPEL_TRY_VOID(take(kPermissionBase + permission));
    for (const auto permission : kUnshared)
        DOPPEL_TRY_VOID(take(kUnsharedBase + permission));
    for (const auto permission : holds)
        if (DOPPEL_TRY(taken(fd, path, kUnsharedBase + permission)))
            return in_use(fd, path, !writer);
    for (const auto permission : kUnshared)
        if (DOPPEL_TRY(taken(fd, path, kPermissionBase + permission)))
            return in_use(fd, path, true);
    return {};
}

} // namespace doppel::block
