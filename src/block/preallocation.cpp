// SPDX-License-Identifier: Apache-2.0
#include "block/preallocation.hpp"

#include <algorithm>

#include "block/file/file_node.hpp"

namespace doppel::block {

namespace {

Task<void> write_zero_bytes(Node& file, std::uint64_t offset, std::uint64_t length) {
    const std::vector<std::byte> zeroes(1u << 20);
    for (std::uint64_t done = 0; done < length;) {
        const auto part = std::min<std::uint64_t>(zeroes.size(), length - done);
        const auto from = IoBuffer::of(std::span{zeroes}.first(part));
        DOPPEL_AWAIT_VOID(file.write(offset + done, from, Durability::Cached));
        done += part;
    }
    co_return {};
}

} // namespace

Task<void> take_space(Node& file, std::uint64_t offset, std::uint64_t length, Preallocation how) {
    if (length == 0)
        return ready<void>({});
    if (how == Preallocation::Full)
        return write_zero_bytes(file, offset, length);
    if (how != Preallocation::Falloc)
        return ready<void>({});
    if (file.driver() != "file")
        return ready<void>(
            base::fail(Errc::Unsupported, "preallocation=falloc wants a regular file"));
    return static_cast<FileNode&>(file).allocate(offset, length);
}

} // namespace doppel::block
