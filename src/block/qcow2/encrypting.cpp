// SPDX-License-Identifier: Apache-2.0
/// LUKS: the header lies in clusters of its own; data is encrypted with the number of its sector in
/// the file as the tweak.
#include <fmt/core.h>

#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

Task<void> Qcow2Node::open_encryption() {
    if (header_.crypt_method == kCryptNone)
        co_return {};
    auto load =
        crypto::LuksVolume::load(context_, *file_, header_.crypto.offset, header_.crypto.bytes);
    auto loaded = co_await load;
    const auto here = fmt::format("'{}'", name());
    if (!loaded)
        co_return std::unexpected(std::move(loaded).error().with_context(here));
    luks_ = std::move(*loaded);
    if (!options_.unlock && !options_.driver.contains("encrypt.key-secret"))
        co_return {};
    if (!options_.driver.contains("encrypt.key-secret"))
        co_return base::fail(Errc::PermissionDenied, here + " is encrypted",
                             std::string{crypto::kNamePassphrase} + "encrypt.key-secret=ID.");
    const OptionReader options{format().open_options, options_.driver};
    DOPPEL_CO_TRY(passphrase, crypto::find_secret(options, "encrypt.key-secret", options_.secrets));
    auto unlocking = luks_->unlock(passphrase);
    auto unlocked = co_await unlocking;
    if (!unlocked)
        co_return std::unexpected(std::move(unlocked).error().with_context(here));
    co_return use_cipher();
}

/// The volume is unlocked.
Result<void> Qcow2Node::use_cipher() {
    auto cipher = DOPPEL_TRY(luks_->cipher());
    cipher_ = std::make_unique<crypto::CipherNode>(context_, *data_, 0, std::move(cipher));
    data_ = cipher_.get();
    can_be_fresh_ = false; // zeroes of the file are noise to the guest
    return {};
}

Result<void> Qcow2Node::require_unlocked() const {
    if (!luks_ || cipher_)
        return {};
    return base::fail(
        Errc::PermissionDenied,
        fmt::format("'{}' is encrypted and was opened without its passphrase", name()),
        std::string{crypto::kNamePassphrase} + "encrypt.key-secret=ID.");
}

Task<void> Qcow2Node::encrypt(crypto::LuksOptions options, Secret passphrase) {
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    DOPPEL_CO_TRY(planned, crypto::LuksVolume::plan(options));
    const auto bytes = planned.payload_bytes();
    DOPPEL_AWAIT(offset, allocate_metadata(bytes));
    DOPPEL_AWAIT(volume, crypto::LuksVolume::create(context_, *file_, offset, std::move(options),
                                                    std::move(passphrase)));
    luks_ = std::move(volume);
    header_.crypt_method = kCryptLuks;
    header_.crypto = {offset, bytes};
    DOPPEL_AWAIT_VOID(commit_all());
    DOPPEL_AWAIT_VOID(write_header());
    co_return use_cipher();
}

Task<void> Qcow2Node::change_keys(OptionValues values) {
    if (!luks_)
        co_return base::fail(Errc::InvalidArgument, fmt::format("'{}' is not encrypted", name()),
                             "Convert it into an image that is: -o encrypt.format=luks,….");
    const OptionReader options{crypto::encrypt_amend_options(), values};
    DOPPEL_CO_TRY_VOID(options.check_names("qcow2 (encrypt.)"));
    DOPPEL_CO_TRY(change, crypto::read_key_change(options, "encrypt.", options_.secrets));
    DOPPEL_AWAIT_VOID(luks_->change(std::move(change)));
    co_return {};
}

} // namespace doppel::block::qcow2
