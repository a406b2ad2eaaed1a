// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The image that a differencing image stands on, where the format identifies it by more than a
/// name. Any thread.
#include <memory>
#include <string>
#include <vector>

#include "block/file/file_node.hpp"

namespace doppel::block {

/// A name as seen from the image's folder.
std::string beside(const std::string& image, const std::string& written);

/// The first `most` bytes of a file that the user has named as the parent of `image`.
Task<std::vector<std::byte>> read_parent_head(IoContext& context, std::string image,
                                              std::string written, std::uint64_t most);

} // namespace doppel::block
