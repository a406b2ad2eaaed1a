// SPDX-License-Identifier: Apache-2.0
#include "block/image/ova_format.hpp"

#include <fmt/core.h>

#include "block/aligned_memory.hpp"
#include "block/image/formats.hpp"
#include "block/ova/ova_node.hpp"

namespace doppel::block {

namespace {

/// Of what lies in a package nothing else may be reached.
class NoOpener final : public ImageOpener {
public:
    Task<std::unique_ptr<Node>> open_backing(std::string written, std::string, std::string image,
                                             ImageOptions) override {
        return ready<std::unique_ptr<Node>>(refuse(written, image));
    }
    Result<std::unique_ptr<Node>> open_part(const std::string& written, const std::string& image,
                                            const ImageOptions&) override {
        return refuse(written, image);
    }

private:
    static std::unexpected<Error> refuse(const std::string& written, const std::string& image) {
        return base::fail(Errc::PermissionDenied,
                          fmt::format("'{}' names the file '{}': a disk in a package stands alone",
                                      image, written));
    }
};

Task<std::unique_ptr<ImageNode>> open_inside(IoContext& context, std::unique_ptr<Node> file,
                                             ImageOptions like) {
    AlignedMemory head{std::min<std::uint64_t>(kProbeBytes, file->size())};
    DOPPEL_AWAIT_VOID(file->read(0, IoBuffer{head.span()}));
    const auto& format = probe_format(head.span(), file->size());
    if (&format == &ova_format())
        co_return base::fail(Errc::Unsupported,
                             fmt::format("'{}' is a package in a package", file->name()));
    NoOpener opener;
    like.disk.clear();
    DOPPEL_AWAIT(node, format.open({&context, std::move(file), like, &opener}));
    co_return node;
}

int probe(std::span<const std::byte> head, std::uint64_t) { return ova::is_package(head) ? 90 : 0; }

Task<std::unique_ptr<ImageNode>> open(OpenRequest request) {
    DOPPEL_AWAIT(node, ova::OvaNode::open(std::move(request), open_inside));
    co_return std::unique_ptr<ImageNode>{std::move(node)};
}

constexpr Format kFormat{
    "ova", "a disk of an OVF package (.ova, .ovf), read only", probe, open, nullptr, {}, nullptr};

} // namespace

const Format& ova_format() { return kFormat; }

} // namespace doppel::block
