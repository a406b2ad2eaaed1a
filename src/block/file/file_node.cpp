// SPDX-License-Identifier: Apache-2.0
#include "block/file/file_node.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/aligned_memory.hpp"

namespace doppel::block {

namespace {
constexpr std::uint64_t kZeroChunk = 1u << 20;
constexpr std::uint64_t kMaxTransfer = 1u << 30; // below what one system call can move
constexpr std::size_t kSmallBytes = 256u << 10;

std::int64_t transfer_now(FileOperation::Kind kind, int fd, const std::vector<iovec>& pieces,
                          std::uint64_t offset) {
    const auto count = static_cast<int>(pieces.size());
    const auto at = static_cast<off_t>(offset);
    const auto moved = kind == FileOperation::Kind::Read ? ::preadv(fd, pieces.data(), count, at)
                                                         : ::pwritev(fd, pieces.data(), count, at);
    return moved < 0 ? -errno : moved;
}
} // namespace

bool FileNode::fits_alignment(std::uint64_t offset, const IoBuffer& buffer) const {
    return alignment_ == 1 ||
           (((offset | buffer.size()) & (alignment_ - 1)) == 0 && buffer.aligned(alignment_));
}

/// Moves all bytes, in as many operations as the kernel wants; what lies past the end reads as
/// zeroes.
Task<void> FileNode::transfer(FileOperation::Kind kind, std::uint64_t offset, IoBuffer buffer) {
    std::size_t moved = 0;
    while (moved < buffer.size()) {
        const auto part = buffer.slice(moved, std::min(buffer.size() - moved, kMaxTransfer));
        const auto pieces = part.pieces(0, IOV_MAX);
        std::int64_t result = 0;
        if (in_memory_ && part.size() <= kSmallBytes) {
            // io_uring would hand each write of a tmpfs file to a thread: that costs more than it.
            result = transfer_now(kind, fd_.get(), pieces, offset + moved);
        } else {
            auto wait = context_.perform({kind, fd_.get(), pieces.data(),
                                          static_cast<unsigned>(pieces.size()), offset + moved});
            result = co_await wait;
        }
        if (result == -EINTR || result == -EAGAIN)
            continue;
        if (result < 0)
            co_return base::fail_errno(
                static_cast<int>(-result),
                fmt::format("{} {} bytes at {} of '{}'",
                            kind == FileOperation::Kind::Read ? "read" : "write", buffer.size(),
                            offset, path_));
        if (result == 0 && kind == FileOperation::Kind::Write)
            co_return base::fail(Errc::NoSpace, fmt::format("'{}' ends at {}: cannot write there",
                                                            path_, offset + moved));
        if (result == 0) {
            buffer.slice(moved, buffer.size() - moved).fill(std::byte{0});
            break;
        }
        moved += static_cast<std::size_t>(result);
        if (moved < buffer.size() && alignment_ > 1 && (moved & (alignment_ - 1)) != 0) {
            // The unaligned tail of an O_DIRECT file: nothing can follow.
            buffer.slice(moved, buffer.size() - moved).fill(std::byte{0});
            break;
        }
    }
    co_return {};
}

Task<void> FileNode::read(std::uint64_t offset, IoBuffer into) {
    if (!fits_alignment(offset, into))
        return read_unaligned(offset, into);
    return transfer(FileOperation::Kind::Read, offset, into);
}

Task<void> FileNode::read_unaligned(std::uint64_t offset, IoBuffer into) {
    const auto begin = base::align_down(offset, alignment_);
    const auto end = base::align_up(offset + into.size(), alignment_);
    AlignedMemory copy{end - begin};
    DOPPEL_AWAIT_VOID(transfer(FileOperation::Kind::Read, begin, IoBuffer{copy.span()}));
    into.copy_from(copy.span().subspan(offset - begin, into.size()));
    co_return {};
}

void FileNode::changing() {
    known_ = {};
    unflushed_ = true;
}

Task<void> FileNode::write(std::uint64_t offset, IoBuffer from, Durability durability) {
    changing();
    const auto end = offset + from.size();
    if (fits_alignment(offset, from)) {
        auto wait = unaligned_.lock(offset, end, RangeLock::Mode::Shared);
        auto guard = co_await wait;
        DOPPEL_AWAIT_VOID(transfer(FileOperation::Kind::Write, offset, from));
    } else {
        DOPPEL_AWAIT_VOID(write_unaligned(offset, from));
    }
    DOPPEL_AWAIT_VOID(after_write(end, durability));
    co_return {};
}

Task<void> FileNode::write_unaligned(std::uint64_t offset, IoBuffer from) {
    const auto begin = base::align_down(offset, alignment_);
    const auto end = base::align_up(offset + from.size(), alignment_);
    auto wait = unaligned_.lock(begin, end, RangeLock::Mode::Exclusive);
    auto guard = co_await wait;
    AlignedMemory copy{end - begin};
    if (begin != offset || end != offset + from.size())
        DOPPEL_AWAIT_VOID(transfer(FileOperation::Kind::Read, begin, IoBuffer{copy.span()}));
    from.copy_to(copy.span().subspan(offset - begin, from.size()));
    DOPPEL_AWAIT_VOID(transfer(FileOperation::Kind::Write, begin, IoBuffer{copy.span()}));
    size_ = is_device_ ? size_ : std::max(size_, end);
    co_return {};
}

Task<void> FileNode::after_write(std::uint64_t end, Durability durability) {
    known_ = {}; // once more: a status() may have looked while the write was under way
    if (!is_device_)
        size_ = std::max(size_, end);
    const bool through =
        options_.cache == CacheMode::WriteThrough || options_.cache == CacheMode::DirectSync;
    if (durability == Durability::Durable || through)
        return flush();
    return ready<void>({});
}

Task<void> FileNode::flush() {
    if (options_.cache == CacheMode::Unsafe || read_only())
        co_return {};
    unflushed_ = false;
    FileOperation sync;
    sync.kind = FileOperation::Kind::Sync;
    sync.fd = fd_.get();
    auto wait = context_.perform(sync);
    const auto result = co_await wait;
    if (result >= 0)
        co_return {};
    unflushed_ = true;
    co_return base::fail_errno(static_cast<int>(-result), fmt::format("flush '{}'", path_));
}

Task<void> FileNode::close() { return unflushed_ ? flush() : ready<void>({}); }

/// False when the file system cannot.
Task<bool> FileNode::try_allocate(int mode, std::uint64_t offset, std::uint64_t length) {
    FileOperation operation;
    operation.kind = FileOperation::Kind::Allocate;
    operation.fd = fd_.get();
    operation.offset = offset;
    operation.length = length;
    operation.mode = mode;
    while (true) {
        auto wait = context_.perform(operation);
        const auto result = co_await wait;
        if (result == -EINTR || result == -EAGAIN)
            continue;
        if (result == -EOPNOTSUPP || result == -ENOSYS || result == -EINVAL || result == -ENOTTY)
            co_return false;
        if (result < 0)
            co_return base::fail_errno(
                static_cast<int>(-result),
                fmt::format("allocate {} bytes at {} of '{}'", length, offset, path_));
        co_return true;
    }
}

Task<void> FileNode::allocate(std::uint64_t offset, std::uint64_t length) {
    changing();
    DOPPEL_AWAIT(done, try_allocate(0, offset, length));
    if (!done)
        co_return base::fail(Errc::Unsupported,
                             fmt::format("the file system of '{}' cannot reserve space", path_),
                             "Use preallocation=full or off.");
    size_ = is_device_ ? size_ : std::max(size_, offset + length);
    co_return {};
}

Task<void> FileNode::write_zero_bytes(std::uint64_t offset, std::uint64_t length) {
    AlignedMemory zeroes{std::min(length, kZeroChunk)};
    for (std::uint64_t done = 0; done < length;) {
        const auto part = std::min<std::uint64_t>(length - done, zeroes.size());
        DOPPEL_AWAIT_VOID(
            write(offset + done, IoBuffer{zeroes.span().first(part)}, Durability::Cached));
        done += part;
    }
    co_return {};
}

/// Makes the file at least that long. It may be longer than size_ says: writes behind `end` may be
/// under way, and bulk writers use the descriptor. So never by ftruncate().
Task<void> FileNode::extend(std::uint64_t end) {
    DOPPEL_AWAIT(done, try_allocate(0, end - 1, 1));
    if (!done)
        DOPPEL_AWAIT_VOID(write_zero_bytes(end - 1, 1));
    co_return {};
}

Task<void> FileNode::write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                                  Durability durability) {
    changing();
    const auto end = offset + length;
    const bool aligned = ((offset | length) & (std::max(alignment_, 512u) - 1)) == 0;
    const bool fits = !is_device_ || aligned;
    bool done = length == 0;
    if (!done && unmap == Unmap::Allow && can_punch_ && fits) {
        DOPPEL_AWAIT(punched,
                     try_allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length));
        can_punch_ = done = punched;
    }
    if (!done && can_zero_ && fits) {
        DOPPEL_AWAIT(zeroed,
                     try_allocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length));
        can_zero_ = done = zeroed;
    }
    if (!done)
        DOPPEL_AWAIT_VOID(write_zero_bytes(offset, length));
    else if (!is_device_ && end > size_)
        DOPPEL_AWAIT_VOID(extend(end));
    DOPPEL_AWAIT_VOID(after_write(end, durability));
    co_return {};
}

Task<void> FileNode::discard(std::uint64_t offset, std::uint64_t length) {
    changing();
    const std::uint64_t grain = is_device_ ? std::max(alignment_, 512u) : 1;
    const auto begin = base::align_up(offset, grain);
    const auto end = base::align_down(offset + length, grain);
    if (!can_punch_ || end <= begin)
        co_return {};
    DOPPEL_AWAIT(punched,
                 try_allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, begin, end - begin));
    can_punch_ = punched;
    known_ = {};
    co_return {};
}

Task<Extent> FileNode::status(std::uint64_t offset, std::uint64_t length) {
    if (offset < known_.begin || offset >= known_.end) {
        const auto at = static_cast<off_t>(offset);
        const auto data = ::lseek(fd_.get(), at, SEEK_DATA);
        if (data < 0 && errno == ENXIO) {
            known_ = {offset, std::max(size_, offset + length), false};
        } else if (data < 0 || is_device_) { // no map: it is all data
            known_ = {offset, std::max(size_, offset + length), true};
        } else if (data > at) {
            known_ = {offset, static_cast<std::uint64_t>(data), false};
        } else {
            const auto hole = ::lseek(fd_.get(), at, SEEK_HOLE);
            known_ = {offset, hole > at ? static_cast<std::uint64_t>(hole) : offset + length, true};
        }
    }
    Extent extent;
    extent.length = std::min(length, known_.end - offset);
    extent.content = known_.data ? Content::Data : Content::Zero;
    extent.host = offset;
    extent.place = this;
    return ready<Extent>(extent);
}

Task<void> FileNode::resize(std::uint64_t size_bytes) {
    changing();
    if (is_device_) {
        if (size_bytes <= size_)
            co_return {};
        co_return base::fail(Errc::NoSpace, fmt::format("device '{}' has {} bytes, {} are needed",
                                                        path_, size_, size_bytes));
    }
    if (::ftruncate(fd_.get(), static_cast<off_t>(size_bytes)) != 0)
        co_return base::fail_errno(errno,
                                   fmt::format("resize '{}' to {} bytes", path_, size_bytes));
    size_ = size_bytes;
    co_return {};
}

} // namespace doppel::block
