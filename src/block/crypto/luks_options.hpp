// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The options of encryption as users write them: for qcow2 with "encrypt." in front of each name,
/// for the format luks without. Any thread.
#include "block/crypto/luks_volume.hpp"
#include "block/option_reader.hpp"

namespace doppel::block::crypto {

/// "key-secret", "cipher-alg" … with their defaults and help.
std::span<const OptionSpec> luks_create_options();    // without a prefix
std::span<const OptionSpec> encrypt_create_options(); // "encrypt.…"
/// Of amend: "state", "new-secret", "old-secret", "keyslot", "iter-time", "force".
std::span<const OptionSpec> luks_amend_options();
std::span<const OptionSpec> encrypt_amend_options();
/// A hint; what the option is called follows.
constexpr const char* kNamePassphrase =
    "Name its passphrase: --object secret,id=ID,file=FILE, and in --image-opts ";
bool is_encrypt_option(std::string_view name);

/// `prefix`: "" or "encrypt.".
Result<LuksOptions> read_luks_options(const OptionReader& options, const std::string& prefix);
Result<KeyChange> read_key_change(const OptionReader& options, const std::string& prefix,
                                  const SecretSource* secrets);
/// The secret that option `name` names. Errors: the option is missing; there is no such secret.
Result<Secret> find_secret(const OptionReader& options, const std::string& name,
                           const SecretSource* secrets);

} // namespace doppel::block::crypto
