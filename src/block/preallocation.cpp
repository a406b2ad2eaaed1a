// SPDX-License-Identifier: Apache-2.0
#include "block/preallocation.hpp"

#include <algorithm>

#include <fmt/core.h>

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

Result<Preallocation> parse_reservation(std::string_view word, std::string_view format,
                                        bool has_all_bytes) {
    if (word == "off")
        return Preallocation::Off;
    if (word != "falloc" && word != "full")
        return base::fail(Errc::InvalidArgument,
                          fmt::format("preallocation '{}' is unknown for {}", word, format),
                          "Use off, falloc or full.");
    if (!has_all_bytes)
        return base::fail(
            Errc::InvalidArgument,
            fmt::format("preallocation={} is for {} images that do not grow", word, format),
            "Choose another subformat.");
    return word == "full" ? Preallocation::Full : Preallocation::Falloc;
}

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
