// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A piece of a file in our address space.
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

#include "base/bytes.hpp"

namespace doppel::block {

inline constexpr std::uint64_t kPage = 4096;
inline constexpr std::uint64_t kHugePage = 2u << 20;

/// Shared with the file. Only the kernel may touch what a file may lose at any time: it answers
/// with an error, where our own access would end in SIGBUS. Any thread.
class Window {
public:
    /// `offset` lies on a boundary of pages, and the memory on one of `alignment`.
    Window(int fd, std::uint64_t offset, std::size_t size_bytes, int protection,
           std::uint64_t alignment = kPage)
        : offset_{offset}, size_{size_bytes} {
        const auto reserved = size_bytes + alignment;
        void* const room = ::mmap(nullptr, reserved, PROT_NONE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (room == MAP_FAILED)
            return;
        auto* const begin = static_cast<std::byte*>(room);
        const auto skipped = -reinterpret_cast<std::uintptr_t>(begin) & (alignment - 1);
        if (skipped > 0)
            ::munmap(begin, skipped);
        const auto used = base::align_up(size_bytes, kPage);
        ::munmap(begin + skipped + used, reserved - used - skipped);
        void* const mapped = ::mmap(begin + skipped, size_bytes, protection, MAP_SHARED | MAP_FIXED,
                                    fd, static_cast<off_t>(offset));
        if (mapped != MAP_FAILED)
            memory_ = static_cast<std::byte*>(mapped);
        else
            ::munmap(begin + skipped, used);
    }
    ~Window() {
        if (memory_ != nullptr)
            ::munmap(memory_, size_);
    }
    Window(const Window&) = delete;
    Window& operator=(const Window&) = delete;

    /// Null: there is none.
    std::byte* memory() const { return memory_; }
    std::size_t size_bytes() const { return size_; }
    bool covers(std::uint64_t offset, std::uint64_t length) const {
        return memory_ != nullptr && offset >= offset_ && offset + length <= offset_ + size_;
    }
    /// Where a byte of the file is.
    std::byte* at(std::uint64_t offset) const { return memory_ + (offset - offset_); }

private:
    std::uint64_t offset_;
    std::size_t size_;
    std::byte* memory_ = nullptr;
};

} // namespace doppel::block
