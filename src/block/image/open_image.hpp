// SPDX-License-Identifier: Apache-2.0
#pragma once
/// From a path to a node: opens the file, settles the format, follows the chain. Runs on the
/// context's loop; at start-up: context.wait(open_image(…)).
#include "block/drive.hpp"
#include "block/image/formats.hpp"

namespace doppel::block {

/// The protocol node of a name: an NBD URL (nbd://, nbd+unix://, nbds://, nbds+unix://), else a
/// file or a device. Errors: what FileNode::open and nbd::ClientNode::open say.
Task<std::unique_ptr<Node>> open_protocol(IoContext& context, std::string name,
                                          FileOptions options);
/// Whether open_protocol would connect to a server.
bool is_network_name(const std::string& name);

/// Those options whose names begin with `prefix`, without it.
OptionValues options_behind(const OptionValues& values, std::string_view prefix);

struct OpenedImage {
    std::unique_ptr<ImageNode> node;
    const Format* format = nullptr;
    bool probed = false; // the format was guessed, not named
};

/// Errors: what open_protocol says; the format is unknown, or the file is not of it; what the
/// format finds wrong; a backing file of the chain cannot be opened, and which.
Task<OpenedImage> open_image(IoContext& context, std::string path, ImageOptions options);

/// An image for a guest. The format must be named unless the image is read only: a guest that can
/// write a disk whose format is guessed chooses what we take it for next time.
Result<std::unique_ptr<ImageNode>> open_for_guest(IoContext& context, const std::string& path,
                                                  const ImageOptions& options);
/// The same as a device sees it.
Result<std::unique_ptr<Drive>> open_drive(IoContext& context, const std::string& path,
                                          const ImageOptions& options);

} // namespace doppel::block
