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

Task<void> create(CreateRequest request) {
    const auto mode = request.options.find("preallocation");
    const std::string wanted = mode == request.options.end() ? "off" : mode->second;
    DOPPEL_CO_TRY(how, parse_reservation(wanted, "raw", true));
    auto& file = *request.file;
    DOPPEL_AWAIT_VOID(take_space(file, 0, request.size_bytes, how));
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
