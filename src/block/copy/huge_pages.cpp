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

constexpr std::uint64_t kWindow = 8 * kHugePage;

/// A piece of a file in our address space; both lie on boundaries of huge pages.
class Window {
public:
    Window(int fd, std::uint64_t offset, std::size_t size_bytes) : size_{size_bytes} {
        const auto reserved = size_bytes + kHugePage;
        void* const room = ::mmap(nullptr, reserved, PROT_NONE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (room == MAP_FAILED)
            return;
        auto* const begin = static_cast<std::byte*>(room);
        const auto skipped = -reinterpret_cast<std::uintptr_t>(begin) & (kHugePage - 1);
        if (skipped > 0)
            ::munmap(begin, skipped);
        ::munmap(begin + skipped + size_bytes, kHugePage - skipped);
        void* const mapped = ::mmap(begin + skipped, size_bytes, PROT_READ | PROT_WRITE,
                                    MAP_SHARED | MAP_FIXED, fd, static_cast<off_t>(offset));
        if (mapped != MAP_FAILED)
            memory_ = static_cast<std::byte*>(mapped);
    }
    ~Window() {
        if (memory_ != nullptr)
            ::munmap(memory_, size_);
    }
    Window(const Window&) = delete;
    Window& operator=(const Window&) = delete;

    std::byte* memory() const { return memory_; }
    bool make_huge() const {
        return memory_ != nullptr && ::madvise(memory_, size_, MADV_COLLAPSE) == 0;
    }

private:
    std::size_t size_;
    std::byte* memory_ = nullptr;
};

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

bool move_by_window(std::span<const Move> moves, std::uint64_t begin, std::uint64_t end) {
    const int to = moves.front().to;
    if (!begin_pages(to, begin, end))
        return false;
    const Window window{to, begin, end - begin};
    if (!window.make_huge())
        return false;
    return std::ranges::all_of(moves, [&](const Move& move) {
        const auto part = move.within(begin, end);
        return part.length == 0 ||
               read_exactly(part.from, window.memory() + (part.to_offset - begin), part.length,
                            part.from_offset);
    });
}

} // namespace

bool lives_in_memory(int fd) {
    struct statfs system{};
    return ::fstatfs(fd, &system) == 0 && system.f_type == TMPFS_MAGIC;
}

bool move_by_huge_pages(std::span<const Move> moves, std::uint64_t begin, std::uint64_t end) {
    for (auto at = begin; at < end; at += kWindow) {
        const auto window_end = std::min(at + kWindow, end);
        if (!move_by_window(moves, at, window_end))
            return false;
    }
    return true;
}

} // namespace doppel::block
