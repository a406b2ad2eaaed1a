// SPDX-License-Identifier: Apache-2.0
#include "block/vmdk/plain_extents.hpp"

#include <fmt/core.h>

namespace doppel::block::vmdk {

Task<Extent> FlatExtent::status(std::uint64_t offset, std::uint64_t length) {
    DOPPEL_AWAIT(extent, file_->status(begin_ + offset, length));
    extent.host = begin_ + offset;
    extent.place = file_.get();
    co_return extent;
}

Task<void> FlatExtent::resize(std::uint64_t size_bytes) {
    if (!file_->fixed_size()) {
        // What lies behind the end must read as zeroes once it belongs to the disk.
        if (size_bytes > size_ && file_->size() > begin_ + size_) {
            DOPPEL_AWAIT_VOID(file_->resize(begin_ + size_));
            DOPPEL_AWAIT_VOID(file_->flush());
        }
        DOPPEL_AWAIT_VOID(file_->resize(begin_ + size_bytes));
        DOPPEL_AWAIT_VOID(file_->flush());
    } else if (begin_ + size_bytes > file_->size()) {
        co_return base::fail(Errc::NoSpace,
                             fmt::format("'{}' has {} bytes", file_->name(), file_->size()));
    }
    size_ = size_bytes;
    co_return {};
}

Task<CheckResult> FlatExtent::check(Repair) {
    CheckResult result;
    result.image_end_offset = begin_ + size_;
    if (file_->size() < begin_ + size_)
        result.found_corruption(fmt::format("'{}' has {} bytes, the descriptor wants {} of it",
                                            file_->name(), file_->size(), begin_ + size_));
    return ready<CheckResult>(std::move(result));
}

} // namespace doppel::block::vmdk
