// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Passphrases that lie in files. Any thread.
#include <map>
#include <string>

#include "block/secret.hpp"

namespace doppel::block::crypto {

/// The file's bytes as they are: a line's end at their end belongs to them, as it does for QEMU.
/// Errors: it cannot be read, or is too long to be a secret.
base::Result<Secret> read_secret_file(const std::string& path);

/// Secrets by name; the files are read when a secret is wanted.
class SecretFiles final : public SecretSource {
public:
    struct File {
        std::string path;
        bool base64 = false;
    };
    explicit SecretFiles(std::map<std::string, File> files) : files_{std::move(files)} {}
    base::Result<Secret> secret(const std::string& id) const override;

private:
    std::map<std::string, File> files_;
};

} // namespace doppel::block::crypto
