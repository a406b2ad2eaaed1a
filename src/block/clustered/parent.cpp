// SPDX-License-Identifier: Apache-2.0
#include "block/clustered/parent.hpp"

#include <algorithm>

namespace doppel::block {

std::string beside(const std::string& image, const std::string& written) {
    const auto slash = image.rfind('/');
    if (written.starts_with('/') || slash == std::string::npos)
        return written;
    return image.substr(0, slash + 1) + written;
}

Task<std::vector<std::byte>> read_parent_head(IoContext& context, std::string image,
                                              std::string written, std::uint64_t most) {
    DOPPEL_CO_TRY(file, FileNode::open(context, beside(image, written), {}));
    std::vector<std::byte> head(std::min(most, file->size()));
    DOPPEL_AWAIT_VOID(file->read(0, IoBuffer{head}));
    co_return head;
}

} // namespace doppel::block
