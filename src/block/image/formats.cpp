// SPDX-License-Identifier: Apache-2.0
#include "block/image/formats.hpp"

#include <algorithm>
#include <array>

#include <fmt/core.h>

#include "block/image/ova_format.hpp"
#include "block/luks/luks_node.hpp"
#include "block/parallels/parallels_node.hpp"
#include "block/qcow2/qcow2_node.hpp"
#include "block/qed/qed_node.hpp"
#include "block/raw/raw_node.hpp"
#include "block/vdi/vdi_node.hpp"
#include "block/vhdx/vhdx_node.hpp"
#include "block/vmdk/vmdk_node.hpp"
#include "block/vpc/vpc_node.hpp"

namespace doppel::block {

std::span<const Format* const> formats() {
    static const std::array kAll{
        &raw::format(),  &qcow2::format(), &vdi::format(),       &vhdx::format(), &vpc::format(),
        &vmdk::format(), &luks::format(),  &parallels::format(), &qed::format(),  &ova_format()};
    return kAll;
}

Result<const Format*> find_format(std::string_view name) {
    std::string names;
    for (const auto* format : formats()) {
        if (format->name == name)
            return format;
        names += (names.empty() ? "" : ", ") + std::string{format->name};
    }
    return base::fail(Errc::InvalidArgument, fmt::format("image format '{}' is unknown", name),
                      fmt::format("Known are: {}.", names));
}

const Format& probe_format(std::span<const std::byte> head, std::uint64_t file_bytes) {
    return **std::ranges::max_element(
        formats(), {}, [&](const Format* format) { return format->probe(head, file_bytes); });
}

} // namespace doppel::block
