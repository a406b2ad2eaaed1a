// SPDX-License-Identifier: Apache-2.0
#include "vmm/state_file/ram_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/bytes.hpp"
#include "base/verify.hpp"

namespace doppel::vmm {

using base::Errc;
using base::Result;
using memory::kPageBytes;

namespace {

constexpr std::uint64_t kChunkBytes = 1u << 20; // at once through the buffer

bool is_zero(std::span<const std::byte> bytes) {
    return bytes.front() == std::byte{0} &&
           std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

/// Calls use(offset, run, zero) for every stretch of pages that are all zero, or all not.
template <typename Use> Result<void> by_runs(std::span<const std::byte> bytes, Use&& use) {
    for (std::size_t begin = 0; begin < bytes.size();) {
        const bool zero = is_zero(bytes.subspan(begin, kPageBytes));
        auto end = begin + kPageBytes;
        while (end < bytes.size() && is_zero(bytes.subspan(end, kPageBytes)) == zero)
            end += kPageBytes;
        DOPPEL_TRY_VOID(use(begin, bytes.subspan(begin, end - begin), zero));
        begin = end;
    }
    return {};
}

Result<void> write_fully(int fd, std::uint64_t offset, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
        const auto n = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return base::fail_errno(errno, "write guest RAM");
        bytes = bytes.subspan(static_cast<std::size_t>(n));
        offset += static_cast<std::uint64_t>(n);
    }
    return {};
}

Result<void> read_fully(int fd, std::uint64_t offset, std::span<std::byte> bytes) {
    while (!bytes.empty()) {
        const auto n = ::pread(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return base::fail_errno(errno, "read guest RAM");
        if (n == 0)
            return base::fail(Errc::Corrupt, "the file ends within guest RAM");
        bytes = bytes.subspan(static_cast<std::size_t>(n));
        offset += static_cast<std::uint64_t>(n);
    }
    return {};
}

/// The first place not below `offset` that is data or a hole, as `whence` says, at most `end`.
/// Filesystems that know no holes say it is all data.
std::uint64_t next(int fd, int whence, std::uint64_t offset, std::uint64_t end) {
    const auto found = ::lseek(fd, static_cast<off_t>(offset), whence);
    if (found < 0)
        return errno == ENXIO || whence == SEEK_HOLE ? end : offset;
    return std::min(static_cast<std::uint64_t>(found), end);
}

/// Into RAM that was never written: zeros need no page there, even if the file has lost its holes.
Result<void> read_stretch(memory::GuestMemory& memory, int fd, std::uint64_t file_offset,
                          std::uint64_t offset, std::span<std::byte> buffer) {
    DOPPEL_TRY_VOID(read_fully(fd, file_offset + offset, buffer));
    return by_runs(buffer, [&](std::size_t at, std::span<const std::byte> run, bool zero) {
        DOPPEL_VERIFY(zero || memory.write_linear(offset + at, run), "inside RAM");
        return Result<void>{};
    });
}

} // namespace

RamWriter::RamWriter(const memory::GuestMemory& memory, int fd, std::uint64_t file_offset)
    : memory_{memory}, fd_{fd}, file_offset_{file_offset}, buffer_(kChunkBytes) {}

Result<void> RamWriter::write_all(const RamProgress& progress) {
    const auto size = memory_.size_bytes();
    for (std::uint64_t offset = 0; offset < size;) {
        offset = base::align_down(memory_.next_used(offset), kPageBytes);
        if (progress && !progress(offset))
            return base::fail(Errc::Interrupted, "saving was stopped");
        const auto length = std::min(kChunkBytes, size - offset);
        DOPPEL_TRY_VOID(write_range(offset, length, Zeros::Skip));
        offset += length;
    }
    return {};
}

Result<void> RamWriter::write_pages(std::span<const std::uint64_t> bitmap) {
    const auto pages = memory_.size_bytes() / kPageBytes;
    const auto is_set = [&](std::uint64_t page) {
        return page < pages && (bitmap[page / 64] >> (page % 64) & 1) != 0;
    };
    DOPPEL_VERIFY(bitmap.size() * 64 >= pages, "a bitmap of this memory");
    for (std::uint64_t page = 0; page < pages;) {
        if (!is_set(page)) {
            ++page;
            continue;
        }
        auto end = page + 1;
        while (is_set(end) && end - page < kChunkBytes / kPageBytes)
            ++end;
        DOPPEL_TRY_VOID(write_range(page * kPageBytes, (end - page) * kPageBytes, Zeros::Punch));
        page = end;
    }
    return {};
}

Result<void> RamWriter::write_range(std::uint64_t offset, std::uint64_t length, Zeros zeros) {
    const auto bytes = std::span{buffer_}.first(length);
    if (length == 0)
        return {};
    DOPPEL_VERIFY(memory_.read_linear(offset, bytes), "RAM has the size it had");
    return by_runs(bytes, [&](std::size_t at, std::span<const std::byte> run, bool zero) {
        if (!zero)
            return write_used(offset + at, run);
        return zeros == Zeros::Punch ? punch(offset + at, run) : Result<void>{};
    });
}

Result<void> RamWriter::write_used(std::uint64_t offset, std::span<const std::byte> bytes) {
    DOPPEL_TRY_VOID(write_fully(fd_, file_offset_ + offset, bytes));
    written_bytes_ += bytes.size();
    return {};
}

/// Filesystems without holes get the zeros.
Result<void> RamWriter::punch(std::uint64_t offset, std::span<const std::byte> zeros) {
    if (::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(file_offset_ + offset),
                    static_cast<off_t>(zeros.size())) == 0)
        return {};
    return write_used(offset, zeros);
}

Result<void> read_ram(memory::GuestMemory& memory, int fd, std::uint64_t file_offset) {
    std::vector<std::byte> buffer(kChunkBytes);
    const auto size = memory.size_bytes();
    for (std::uint64_t offset = 0; offset < size;) {
        const auto found = next(fd, SEEK_DATA, file_offset + offset, file_offset + size);
        const auto begin = base::align_down(found - file_offset, kPageBytes);
        if (begin >= size)
            break;
        const auto hole = next(fd, SEEK_HOLE, file_offset + begin, file_offset + size);
        const auto end = std::max(base::align_down(hole - file_offset + kPageBytes - 1, kPageBytes),
                                  begin + kPageBytes);
        const auto length = std::min(end - begin, kChunkBytes);
        DOPPEL_TRY_VOID(
            read_stretch(memory, fd, file_offset, begin, std::span{buffer}.first(length)));
        offset = begin + length;
    }
    return {};
}

} // namespace doppel::vmm
