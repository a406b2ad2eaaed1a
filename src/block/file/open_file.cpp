// SPDX-License-Identifier: Apache-2.0
/// How a file becomes a FileNode: every way in which that can fail has its own sentence.
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <string_view>
#include <utility>

#include <fmt/core.h>

#include "block/file/file_node.hpp"

namespace doppel::block {

namespace {

bool is_direct(CacheMode cache) {
    return cache == CacheMode::None || cache == CacheMode::DirectSync;
}

int open_flags(const FileOptions& options) {
    return O_CLOEXEC | O_NONBLOCK | (options.access == Access::ReadOnly ? O_RDONLY : O_RDWR) |
           (is_direct(options.cache) ? O_DIRECT : 0);
}

std::unexpected<Error> explain_open(int error, const std::string& path,
                                    const FileOptions& options) {
    const bool writing = options.access == Access::ReadWrite;
    auto text = fmt::format("open '{}'{}", path, writing ? " for writing" : "");
    if (error == EINVAL && is_direct(options.cache))
        return base::fail(Errc::Unsupported, text + ": its file system has no O_DIRECT",
                          "Use cache mode writeback.");
    if (writing && (error == EACCES || error == EPERM) && ::access(path.c_str(), R_OK) == 0)
        return base::fail_errno(error, text, "The file can be read, but not written.");
    if (error == ETXTBSY || error == EROFS)
        return base::fail_errno(error, text, "It can be opened for reading only.");
    return base::fail_errno(error, text);
}

/// Only an empty file takes them. They are for speed: where there is no such thing, nothing is
/// lost.
void give_hints(int fd, const FileHints& hints) {
    int flags = 0;
    if (hints.no_copy_on_write && ::ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0) {
        flags |= FS_NOCOW_FL;
        static_cast<void>(::ioctl(fd, FS_IOC_SETFLAGS, &flags));
    }
    fsxattr extra{};
    if (hints.extent_bytes != 0 && ::ioctl(fd, FS_IOC_FSGETXATTR, &extra) == 0) {
        extra.fsx_xflags |= FS_XFLAG_EXTSIZE;
        extra.fsx_extsize = static_cast<std::uint32_t>(hints.extent_bytes);
        static_cast<void>(::ioctl(fd, FS_IOC_FSSETXATTR, &extra));
    }
}

/// The smallest unit in which an O_DIRECT descriptor can be read: tried, as every file system has
/// its own rule.
std::uint32_t probe_alignment(int fd) {
    constexpr std::size_t kLargest = 4096;
    void* memory = nullptr;
    if (::posix_memalign(&memory, kLargest, kLargest) != 0)
        return kLargest;
    std::uint32_t found = kLargest;
    for (const std::uint32_t size : {512u, 1024u, 2048u}) {
        if (::pread(fd, memory, size, 0) >= 0) {
            found = size;
            break;
        }
    }
    std::free(memory);
    return found;
}

} // namespace

Result<CacheMode> parse_cache_mode(const std::string& name) {
    constexpr std::array<std::pair<std::string_view, CacheMode>, 5> kNames{{
        {"writeback", CacheMode::WriteBack},
        {"writethrough", CacheMode::WriteThrough},
        {"none", CacheMode::None},
        {"directsync", CacheMode::DirectSync},
        {"unsafe", CacheMode::Unsafe},
    }};
    for (const auto& [text, mode] : kNames)
        if (text == name)
            return mode;
    return base::fail(Errc::InvalidArgument, fmt::format("cache mode '{}' is unknown", name),
                      "Use writeback, writethrough, none, directsync or unsafe.");
}

FileNode::FileNode(IoContext& context, base::UniqueFd fd, std::string path,
                   const FileOptions& options)
    : context_{context}, fd_{std::move(fd)}, path_{std::move(path)}, options_{options},
      unaligned_{context} {}

Result<std::unique_ptr<FileNode>> FileNode::open(IoContext& context, const std::string& path,
                                                 const FileOptions& options) {
    if (options.sharing == Sharing::Forced && options.access == Access::ReadWrite)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("'{}' cannot be written without a lock", path),
                          "Leave out -U.");
    base::UniqueFd fd{::open(path.c_str(), open_flags(options))};
    if (!fd)
        return explain_open(errno, path, options);
    std::unique_ptr<FileNode> node{new FileNode{context, std::move(fd), path, options}};
    DOPPEL_TRY_VOID(node->inspect());
    if (options.sharing == Sharing::Locked)
        DOPPEL_TRY_VOID(lock_image(node->fd_.get(), path, options.access));
    return node;
}

Result<std::unique_ptr<FileNode>> FileNode::create(IoContext& context, const std::string& path,
                                                   CacheMode cache, const FileHints& hints) {
    const FileOptions options{Access::ReadWrite, cache, Sharing::Locked};
    base::UniqueFd fd{::open(path.c_str(), open_flags(options) | O_CREAT, 0644)};
    if (!fd)
        return base::fail_errno(errno, fmt::format("create '{}'", path));
    std::unique_ptr<FileNode> node{new FileNode{context, std::move(fd), path, options}};
    DOPPEL_TRY_VOID(node->inspect());
    DOPPEL_TRY_VOID(lock_image(node->fd_.get(), path, Access::ReadWrite));
    if (!node->is_device_ && ::ftruncate(node->fd_.get(), 0) != 0)
        return base::fail_errno(errno, fmt::format("empty '{}'", path));
    if (!node->is_device_) {
        node->size_ = 0;
        give_hints(node->fd_.get(), hints);
    }
    return node;
}

Result<void> FileNode::inspect() {
    struct stat info{};
    if (::fstat(fd_.get(), &info) != 0)
        return base::fail_errno(errno, fmt::format("look at '{}'", path_));
    if (S_ISDIR(info.st_mode))
        return base::fail(Errc::InvalidArgument, fmt::format("'{}' is a directory", path_),
                          "Name a file or a block device.");
    is_device_ = S_ISBLK(info.st_mode);
    if (!is_device_ && !S_ISREG(info.st_mode))
        return base::fail(Errc::InvalidArgument,
                          fmt::format("'{}' is neither a file nor a block device", path_));
    size_ = static_cast<std::uint64_t>(info.st_size);
    if (is_device_ && ::ioctl(fd_.get(), BLKGETSIZE64, &size_) != 0)
        return base::fail_errno(errno, fmt::format("ask for the size of device '{}'", path_));
    struct statfs system{};
    in_memory_ = !is_device_ && ::fstatfs(fd_.get(), &system) == 0 && system.f_type == TMPFS_MAGIC;
    int sector_bytes = 512;
    if (is_device_ && is_direct(options_.cache) &&
        ::ioctl(fd_.get(), BLKSSZGET, &sector_bytes) == 0)
        alignment_ = static_cast<std::uint32_t>(sector_bytes);
    else if (is_direct(options_.cache))
        alignment_ = probe_alignment(fd_.get());
    return {};
}

std::optional<std::uint64_t> FileNode::allocated_bytes() const {
    struct stat info{};
    if (is_device_ || ::fstat(fd_.get(), &info) != 0)
        return std::nullopt;
    return static_cast<std::uint64_t>(info.st_blocks) * 512;
}

} // namespace doppel::block
