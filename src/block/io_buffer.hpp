// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Memory that a request reads into or writes from: a view of one or many pieces, opaque to the
/// block layer. It may be guest RAM, which an adversary changes at any moment: whoever inspects,
/// compresses or encrypts the bytes copies them to memory of his own first (copy_to). The pieces
/// and the array that lists them belong to the submitter until the request has completed.
/// Any thread, as the memory behind it allows.
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace doppel::block {

class IoBuffer {
public:
    IoBuffer() = default;
    IoBuffer(void* memory, std::size_t size_bytes)
        : single_{memory, size_bytes}, size_{size_bytes} {}
    explicit IoBuffer(std::span<std::byte> memory) : IoBuffer{memory.data(), memory.size()} {}
    /// Of memory that is only read from: the buffer of a write.
    static IoBuffer of(std::span<const std::byte> memory) {
        return {const_cast<std::byte*>(memory.data()), memory.size()};
    }
    explicit IoBuffer(std::span<const iovec> pieces);

    std::size_t size() const noexcept { return size_; }
    IoBuffer slice(std::size_t from, std::size_t size_bytes) const;

    void copy_to(std::span<std::byte> destination) const;
    void copy_from(std::span<const std::byte> source) const;
    void fill(std::byte value) const;

    /// The pieces from `from` on, at most `limit` of them, for preadv and its like.
    std::vector<iovec> pieces(std::size_t from = 0, std::size_t limit = SIZE_MAX) const;
    /// The memory when it is one piece, else null.
    std::byte* contiguous() const noexcept;
    /// Whether every piece begins and ends on a multiple of `alignment` (a power of two).
    bool aligned(std::size_t alignment) const;

private:
    template <typename Function> void for_each_piece(Function function) const;

    iovec single_{nullptr, 0};
    const iovec* list_ = nullptr; // null: single_ is the only piece
    std::size_t skip_ = 0;        // bytes of the pieces that lie before this view
    std::size_t size_ = 0;
};

/// Whether all bytes are zero; as fast as memory.
bool all_zero(std::span<const std::byte> bytes) noexcept;

} // namespace doppel::block
