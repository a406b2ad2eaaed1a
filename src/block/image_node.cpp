// SPDX-License-Identifier: Apache-2.0
#include "block/image_node.hpp"

#include <fmt/core.h>

namespace doppel::block {

std::unexpected<Error> ImageNode::cannot(const char* what) const {
    return base::fail(Errc::Unsupported,
                      fmt::format("'{}': the format {} has no {}", name(), driver(), what));
}

Task<void> ImageNode::create_snapshot(std::string, std::int64_t) {
    return ready<void>(cannot("internal snapshots"));
}
Task<void> ImageNode::apply_snapshot(std::string) {
    return ready<void>(cannot("internal snapshots"));
}
Task<void> ImageNode::delete_snapshot(std::string) {
    return ready<void>(cannot("internal snapshots"));
}
Task<void> ImageNode::view_snapshot(std::string) {
    return ready<void>(cannot("internal snapshots"));
}
Task<void> ImageNode::change_backing(std::string, std::string) {
    return ready<void>(cannot("backing files"));
}
Task<void> ImageNode::make_empty() { return ready<void>(cannot("backing files")); }
Task<CheckResult> ImageNode::check(Repair) {
    return ready<CheckResult>(cannot("consistency check"));
}
Task<void> ImageNode::amend(OptionValues) {
    return ready<void>(cannot("options that can be amended"));
}
Task<std::vector<Placement>> ImageNode::place(std::uint64_t, std::uint64_t) {
    return ready<std::vector<Placement>>(cannot("bulk writing"));
}
Task<void> ImageNode::write_compressed(std::uint64_t, std::vector<std::byte>) {
    return ready<void>(cannot("compression"));
}
Task<CompressedPiece> ImageNode::compressed_piece(std::uint64_t) {
    return ready<CompressedPiece>(cannot("compression"));
}
Task<void> ImageNode::preallocate(std::uint64_t, Preallocation) {
    return ready<void>(cannot("preallocation of what is added"));
}

Result<void> ImageNode::require_whole() const {
    if (!broken_)
        return {};
    return base::fail(
        Errc::Io,
        fmt::format("'{}': a change failed half-way, so nothing more is written to it", name()),
        "Once the cause is mended, open it anew: it is as after a power cut.");
}

} // namespace doppel::block
