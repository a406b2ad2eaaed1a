// SPDX-License-Identifier: Apache-2.0
/// Raw as a row of the format table.
#include <array>

#include <fmt/core.h>

#include "block/raw/raw_node.hpp"

namespace doppel::block::raw {

namespace {

constexpr std::array kOptions{
    OptionSpec{"preallocation", OptionKind::Text, "off",
               "off (a hole), falloc (space reserved) or full (zeroes written)"},
};

int probe(std::span<const std::byte>, std::uint64_t) {
    return 1; // anything may be raw: the last resort
}

Task<std::unique_ptr<ImageNode>> open(OpenRequest request) {
    return ready<std::unique_ptr<ImageNode>>(
        std::make_unique<RawNode>(std::move(request.file), LooksLikeFormat{}));
}

/// Writes every byte, so that the space is there whatever the file system.
Task<void> write_all_zeroes(Node& file, std::uint64_t size_bytes) {
    const std::vector<std::byte> zeroes(1u << 20);
    for (std::uint64_t done = 0; done < size_bytes;) {
        const auto part = std::min<std::uint64_t>(zeroes.size(), size_bytes - done);
        const auto from = IoBuffer::of(std::span{zeroes}.first(part));
        DOPPEL_AWAIT_VOID(file.write(done, from, Durability::Cached));
        done += part;
    }
    co_return {};
}

Task<void> create(CreateRequest request) {
    const auto mode = request.options.find("preallocation");
    const std::string wanted = mode == request.options.end() ? "off" : mode->second;
    auto& file = *request.file;
    if (wanted != "off" && wanted != "falloc" && wanted != "full")
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("preallocation '{}' is unknown for raw", wanted),
                             "Use off, falloc or full.");
    if (wanted == "full") {
        DOPPEL_AWAIT_VOID(write_all_zeroes(file, request.size_bytes));
    } else if (wanted == "falloc" && request.size_bytes > 0) {
        if (file.driver() != "file")
            co_return base::fail(Errc::Unsupported, "preallocation=falloc wants a regular file");
        DOPPEL_AWAIT_VOID(static_cast<FileNode&>(file).allocate(0, request.size_bytes));
    }
    DOPPEL_AWAIT_VOID(file.resize(request.size_bytes));
    co_return {};
}

Result<SpaceNeed> measure(const DiskUse& use, const OptionValues&) {
    return SpaceNeed{use.size_bytes, use.size_bytes};
}

constexpr Format kFormat{"raw",  "the disk's bytes and nothing else", probe, open, create, kOptions,
                         measure};

} // namespace

const Format& format() { return kFormat; }

} // namespace doppel::block::raw
