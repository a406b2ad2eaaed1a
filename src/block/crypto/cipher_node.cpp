// SPDX-License-Identifier: Apache-2.0
#include "block/crypto/cipher_node.hpp"

#include <algorithm>

#include "base/bytes.hpp"
#include "block/aligned_memory.hpp"

namespace doppel::block::crypto {

namespace {
constexpr std::uint64_t kPart = 1u << 20;        // copied at once
constexpr std::size_t kWorthAWorker = 64u << 10; // less takes no longer than to ask for one
} // namespace

Task<void> CipherNode::apply(std::function<void()> work, std::size_t bytes) {
    if (bytes < kWorthAWorker) {
        work();
        co_return {};
    }
    auto wait = context_.on_worker(std::move(work));
    co_await wait;
    co_return {};
}

/// Whole sectors, in the clear.
Task<void> CipherNode::read_sectors(std::uint64_t offset, std::span<std::byte> bytes) {
    DOPPEL_AWAIT_VOID(below_.read(begin_ + offset, IoBuffer{bytes}));
    DOPPEL_AWAIT_VOID(apply(
        [this, offset, bytes] { cipher_->decrypt(offset / kSectorBytes, bytes); }, bytes.size()));
    co_return {};
}

/// Through memory of our own: the caller's may be a guest's, which must not see what is below.
Task<void> CipherNode::read_part(std::uint64_t offset, IoBuffer into) {
    const auto begin = base::align_down(offset, kSectorBytes);
    const auto end = base::align_up(offset + into.size(), kSectorBytes);
    auto memory = AlignedMemory::uninitialized(end - begin);
    DOPPEL_AWAIT_VOID(read_sectors(begin, memory.span()));
    into.copy_from(memory.span().subspan(offset - begin, into.size()));
    co_return {};
}

Task<void> CipherNode::read(std::uint64_t offset, IoBuffer into) {
    for (std::uint64_t done = 0; done < into.size();) {
        const auto part = std::min<std::uint64_t>(kPart, into.size() - done);
        DOPPEL_AWAIT_VOID(read_part(offset + done, into.slice(done, part)));
        done += part;
    }
    co_return {};
}

Task<void> CipherNode::write_part(std::uint64_t offset, IoBuffer from) {
    const auto begin = base::align_down(offset, kSectorBytes);
    const auto end = base::align_up(offset + from.size(), kSectorBytes);
    const bool whole = end - begin == from.size();
    auto wait =
        sectors_.lock(begin, end, whole ? RangeLock::Mode::Shared : RangeLock::Mode::Exclusive);
    auto guard = co_await wait;
    auto memory = AlignedMemory::uninitialized(end - begin);
    const auto bytes = memory.span();
    if (begin < offset)
        DOPPEL_AWAIT_VOID(read_sectors(begin, bytes.first(kSectorBytes)));
    if (offset + from.size() < end)
        DOPPEL_AWAIT_VOID(read_sectors(end - kSectorBytes, bytes.last(kSectorBytes)));
    from.copy_to(bytes.subspan(offset - begin, from.size()));
    DOPPEL_AWAIT_VOID(apply([this, begin, bytes] { cipher_->encrypt(begin / kSectorBytes, bytes); },
                            bytes.size()));
    DOPPEL_AWAIT_VOID(below_.write(begin_ + begin, IoBuffer{bytes}, Durability::Cached));
    co_return {};
}

Task<void> CipherNode::write(std::uint64_t offset, IoBuffer from, Durability durability) {
    for (std::uint64_t done = 0; done < from.size();) {
        // The first part ends on a sector, so that only the ends are incomplete.
        const auto stop = base::align_down(offset + done + kPart, kSectorBytes) - offset;
        const auto part = std::min<std::uint64_t>(stop, from.size()) - done;
        DOPPEL_AWAIT_VOID(write_part(offset + done, from.slice(done, part)));
        done += part;
    }
    if (durability == Durability::Durable)
        DOPPEL_AWAIT_VOID(below_.flush());
    co_return {};
}

Task<void> CipherNode::write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap,
                                    Durability durability) {
    const AlignedMemory zeroes{std::min(length, kPart)};
    for (std::uint64_t done = 0; done < length;) {
        const auto stop = base::align_down(offset + done + kPart, kSectorBytes) - offset;
        const auto part = std::min(stop, length) - done;
        DOPPEL_AWAIT_VOID(write_part(offset + done, IoBuffer::of(zeroes.span().first(part))));
        done += part;
    }
    if (durability == Durability::Durable)
        DOPPEL_AWAIT_VOID(below_.flush());
    co_return {};
}

Task<Extent> CipherNode::status(std::uint64_t, std::uint64_t length) {
    Extent extent;
    extent.length = length;
    return ready<Extent>(extent);
}

} // namespace doppel::block::crypto
