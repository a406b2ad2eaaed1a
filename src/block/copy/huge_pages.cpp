// SPDX-License-Identifier: Apache-2.0
#include "block/copy/huge_pages.hpp"

#include <linux/magic.h>
#include <linux/mman.h> // MADV_COLLAPSE
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/bytes.hpp"

namespace doppel::block {

namespace {

/// The kernel makes a huge page of what has at least one page, and within the file's end.
bool begin_pages(int fd, std::uint64_t begin, std::uint64_t end) {
    constexpr std::byte kAny{};
    for (auto at = begin + kHugePage; at <= end; at += kHugePage)
        if (::pwrite(fd, &kAny, 1, static_cast<off_t>(at - 1)) != 1)
            return false;
    return true;
}

bool read_exactly(int fd, std::byte* into, std::uint64_t length, std::uint64_t offset) {
    for (std::uint64_t done = 0; done < length;) {
        const auto got = ::pread(fd, into + done, length - done, static_cast<off_t>(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        done += static_cast<std::uint64_t>(got);
    }
    return true;
}

} // namespace

bool move_by_huge_pages(std::span<const Move> moves, std::uint64_t begin, std::uint64_t end) {
    const int to = moves.front().to;
    if (!begin_pages(to, begin, end))
        return false;
    const Window window{to, begin, end - begin, PROT_READ | PROT_WRITE, kHugePage};
    if (window.memory() == nullptr ||
        ::madvise(window.memory(), window.size_bytes(), MADV_COLLAPSE) != 0)
        return false;
    return std::ranges::all_of(moves, [&](const Move& move) {
        const auto part = move.within(begin, end);
        return part.length == 0 ||
               read_exactly(part.from, window.memory() + (part.to_offset - begin), part.length,
                            part.from_offset);
    });
}

bool lives_in_memory(int fd) {
    struct statfs system{};
    return ::fstatfs(fd, &system) == 0 && system.f_type == TMPFS_MAGIC;
}

} // namespace doppel::block
