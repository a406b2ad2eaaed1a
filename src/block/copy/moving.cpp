// SPDX-License-Identifier: Apache-2.0
#include "block/copy/moving.hpp"

#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include <fmt/core.h>

namespace doppel::block {

namespace {

constexpr std::uint64_t kShareAlignment = 4096;
constexpr std::size_t kCopyBytes = 1u << 20;

bool share(const Move& move) {
    if (((move.from_offset | move.to_offset | move.length) & (kShareAlignment - 1)) != 0)
        return false;
    const file_clone_range range{move.from, move.from_offset, move.length, move.to_offset};
    return ::ioctl(move.to, FICLONERANGE, &range) == 0;
}

/// How far the kernel came; less than all where the file systems cannot, or `from` ends.
std::uint64_t move_in_kernel(const Move& move) {
    auto from = static_cast<off_t>(move.from_offset);
    auto to = static_cast<off_t>(move.to_offset);
    std::uint64_t done = 0;
    while (done < move.length) {
        const auto moved = ::copy_file_range(move.from, &from, move.to, &to, move.length - done, 0);
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved <= 0)
            break;
        done += static_cast<std::uint64_t>(moved);
    }
    return done;
}

base::Result<void> copy(const Move& move, std::uint64_t done) {
    std::vector<std::byte> memory(std::min<std::uint64_t>(kCopyBytes, move.length - done));
    while (done < move.length) {
        const auto part =
            std::span{memory}.first(std::min<std::uint64_t>(memory.size(), move.length - done));
        DOPPEL_TRY_VOID(read_all(move.from, part, move.from_offset + done));
        DOPPEL_TRY_VOID(write_all(move.to, part, move.to_offset + done));
        done += part.size();
    }
    return {};
}

} // namespace

base::Result<void> move_data(const Move& move, Moving& how) {
    if (how == Moving::Share) {
        if (share(move))
            return {};
        how = Moving::InKernel;
    }
    std::uint64_t done = 0;
    if (how == Moving::InKernel) {
        done = move_in_kernel(move);
        if (done == move.length)
            return {};
        how = Moving::Copy;
    }
    return copy(move, done); // which also says what is wrong, if anything is
}

base::Result<void> read_all(int fd, std::span<std::byte> into, std::uint64_t offset) {
    for (std::size_t done = 0; done < into.size();) {
        const auto got =
            ::pread(fd, into.data() + done, into.size() - done, static_cast<off_t>(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return base::fail_errno(errno, fmt::format("read {} bytes at {}", into.size(), offset));
        if (got == 0) {
            std::fill(into.begin() + static_cast<std::ptrdiff_t>(done), into.end(), std::byte{0});
            break;
        }
        done += static_cast<std::size_t>(got);
    }
    return {};
}

base::Result<void> write_all(int fd, std::span<const std::byte> from, std::uint64_t offset) {
    for (std::size_t done = 0; done < from.size();) {
        const auto put =
            ::pwrite(fd, from.data() + done, from.size() - done, static_cast<off_t>(offset + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return base::fail_errno(errno,
                                    fmt::format("write {} bytes at {}", from.size(), offset));
        done += static_cast<std::size_t>(put);
    }
    return {};
}

} // namespace doppel::block
