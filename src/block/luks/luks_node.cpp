// SPDX-License-Identifier: Apache-2.0
#include "block/luks/luks_node.hpp"

#include <fmt/core.h>

namespace doppel::block::luks {

Task<std::unique_ptr<LuksNode>> LuksNode::open(OpenRequest request) {
    std::unique_ptr<LuksNode> node{new LuksNode{request}};
    auto& file = *node->file_;
    auto loading = crypto::LuksVolume::load(node->context_, file, 0, file.size());
    auto loaded = co_await loading;
    if (!loaded)
        co_return std::unexpected(
            std::move(loaded).error().with_context(fmt::format("'{}'", node->name())));
    node->volume_ = std::move(*loaded);
    node->size_ = file.size() - node->volume_->header().payload_bytes();
    if (node->options_.unlock || node->options_.driver.contains("key-secret"))
        DOPPEL_AWAIT_VOID(node->unlock());
    co_return node;
}

Task<void> LuksNode::unlock() {
    const auto here = fmt::format("'{}'", name());
    if (!options_.driver.contains("key-secret"))
        co_return base::fail(Errc::PermissionDenied, here + " is encrypted",
                             std::string{crypto::kNamePassphrase} + "driver=luks,key-secret=ID.");
    const OptionReader options{format().open_options, options_.driver};
    DOPPEL_CO_TRY(passphrase, crypto::find_secret(options, "key-secret", options_.secrets));
    auto unlocking = volume_->unlock(passphrase);
    auto unlocked = co_await unlocking;
    if (!unlocked)
        co_return std::unexpected(std::move(unlocked).error().with_context(here));
    DOPPEL_CO_TRY(cipher, volume_->cipher());
    data_ = std::make_unique<crypto::CipherNode>(
        context_, *file_, volume_->header().payload_bytes(), std::move(cipher));
    co_return {};
}

Result<void> LuksNode::require_unlocked() const {
    if (data_)
        return {};
    return base::fail(
        Errc::PermissionDenied,
        fmt::format("'{}' is encrypted and was opened without its passphrase", name()),
        std::string{crypto::kNamePassphrase} + "driver=luks,key-secret=ID.");
}

Task<void> LuksNode::read(std::uint64_t offset, IoBuffer into) {
    DOPPEL_CO_TRY_VOID(require_unlocked());
    DOPPEL_AWAIT_VOID(data_->read(offset, into));
    co_return {};
}

Task<void> LuksNode::write(std::uint64_t offset, IoBuffer from, Durability durability) {
    DOPPEL_CO_TRY_VOID(require_unlocked());
    DOPPEL_AWAIT_VOID(data_->write(offset, from, durability));
    co_return {};
}

Task<void> LuksNode::write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                                  Durability durability) {
    DOPPEL_CO_TRY_VOID(require_unlocked());
    DOPPEL_AWAIT_VOID(data_->write_zeroes(offset, length, unmap, durability));
    co_return {};
}

Task<Extent> LuksNode::status(std::uint64_t, std::uint64_t length) {
    Extent extent;
    extent.length = length;
    return ready<Extent>(extent);
}

Task<void> LuksNode::resize(std::uint64_t size_bytes) {
    if (size_bytes % crypto::kSectorBytes != 0)
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("{} bytes are no whole sectors of 512", size_bytes));
    const auto old = size_;
    if (size_bytes > old)
        DOPPEL_CO_TRY_VOID(require_unlocked());
    DOPPEL_AWAIT_VOID(file_->resize(volume_->header().payload_bytes() + size_bytes));
    if (size_bytes > old)
        DOPPEL_AWAIT_VOID(
            data_->write_zeroes(old, size_bytes - old, Unmap::Keep, Durability::Cached));
    size_ = size_bytes;
    co_return {};
}

ImageInfo LuksNode::info() const {
    ImageInfo info;
    info.encrypted = true;
    info.facts.emplace_back("", volume_->info());
    return info;
}

Task<void> LuksNode::amend(OptionValues values) {
    const OptionReader options{crypto::luks_amend_options(), values};
    DOPPEL_CO_TRY_VOID(options.check_names("luks (to amend)"));
    DOPPEL_CO_TRY(change, crypto::read_key_change(options, "", options_.secrets));
    DOPPEL_AWAIT_VOID(volume_->change(std::move(change)));
    co_return {};
}

} // namespace doppel::block::luks
