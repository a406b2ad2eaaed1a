// SPDX-License-Identifier: Apache-2.0
#include "block/io_buffer.hpp"

#include <algorithm>
#include <cstring>

#include "base/verify.hpp"

namespace doppel::block {

IoBuffer::IoBuffer(std::span<const iovec> pieces) : list_{pieces.data()} {
    for (const auto& piece : pieces)
        size_ += piece.iov_len;
}

IoBuffer IoBuffer::slice(std::size_t from, std::size_t size_bytes) const {
    DOPPEL_VERIFY(from <= size_ && size_bytes <= size_ - from, "a slice lies inside its buffer");
    IoBuffer part = *this;
    part.skip_ += from;
    part.size_ = size_bytes;
    return part;
}

/// Calls function(memory, size) for each piece of this view; it returns false to stop.
template <typename Function> void IoBuffer::for_each_piece(Function function) const {
    std::size_t skip = skip_;
    std::size_t left = size_;
    for (const iovec* piece = list_ != nullptr ? list_ : &single_; left > 0; ++piece) {
        if (skip >= piece->iov_len) {
            skip -= piece->iov_len;
            continue;
        }
        const std::size_t size = std::min(piece->iov_len - skip, left);
        if (!function(static_cast<std::byte*>(piece->iov_base) + skip, size))
            return;
        left -= size;
        skip = 0;
    }
}

void IoBuffer::copy_to(std::span<std::byte> destination) const {
    DOPPEL_VERIFY(destination.size() == size_, "copies are of equal size");
    std::byte* to = destination.data();
    for_each_piece([&](const std::byte* from, std::size_t size) {
        std::memcpy(to, from, size);
        to += size;
        return true;
    });
}

void IoBuffer::copy_from(std::span<const std::byte> source) const {
    DOPPEL_VERIFY(source.size() == size_, "copies are of equal size");
    const std::byte* from = source.data();
    for_each_piece([&](std::byte* to, std::size_t size) {
        std::memcpy(to, from, size);
        from += size;
        return true;
    });
}

void IoBuffer::fill(std::byte value) const {
    for_each_piece([&](std::byte* to, std::size_t size) {
        std::memset(to, std::to_integer<int>(value), size);
        return true;
    });
}

std::vector<iovec> IoBuffer::pieces(std::size_t from, std::size_t limit) const {
    std::vector<iovec> list;
    slice(from, size_ - from).for_each_piece([&](std::byte* memory, std::size_t size) {
        list.push_back({memory, size});
        return list.size() < limit;
    });
    return list;
}

std::byte* IoBuffer::contiguous() const noexcept {
    std::byte* memory = nullptr;
    for_each_piece([&](std::byte* piece, std::size_t size) {
        memory = size == size_ ? piece : nullptr;
        return false;
    });
    return memory;
}

bool IoBuffer::aligned(std::size_t alignment) const {
    bool good = true;
    for_each_piece([&](const std::byte* memory, std::size_t size) {
        good = ((reinterpret_cast<std::uintptr_t>(memory) | size) & (alignment - 1)) == 0;
        return good;
    });
    return good;
}

bool all_zero(std::span<const std::byte> bytes) noexcept {
    // The ends first: most data that is not zero is seen at once.
    const std::size_t head = std::min<std::size_t>(bytes.size(), 16);
    for (std::size_t i = 0; i < head; ++i)
        if (bytes[i] != std::byte{0})
            return false;
    // Then each byte equals the one 16 before it, in memcmp's vector code.
    return bytes.size() <= 16 ||
           std::memcmp(bytes.data(), bytes.data() + 16, bytes.size() - 16) == 0;
}

} // namespace doppel::block
