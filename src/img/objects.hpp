// SPDX-License-Identifier: Apache-2.0
#pragma once
/// --object TYPE,id=ID,…: what an image or a server needs beside the image, as QEMU's users write
/// it. Any thread.
#include <map>
#include <memory>
#include <string>

#include "block/filter/throttle_group.hpp"
#include "block/nbd/tls.hpp"
#include "block/secret.hpp"
#include "img/arguments.hpp"

namespace doppel::img {

struct Object {
    std::string type;
    std::map<std::string, std::string, std::less<>> values;
};

class Objects final : public block::SecretSource {
public:
    /// Of all --object arguments. Errors: a type or a property is unknown, an id is missing or
    /// there twice; a secret cannot be read or decoded.
    static Result<Objects> parse(const Arguments& arguments);
    /// tls-creds-x509 or tls-creds-psk. Errors: there is none of that id, or it is for the other
    /// end.
    Result<block::nbd::TlsOptions> tls(const std::string& id, block::nbd::TlsRole role) const;
    /// Of a throttle-group object. The group is shared by all who ask for it, and lives as long as
    /// this.
    Result<block::filter::ThrottleGroup*> throttle_group(const std::string& id) const;
    /// A copy of what a secret object holds.
    Result<block::Secret> secret(const std::string& id) const override;

private:
    Result<void> make(const std::string& id, Object& object);
    Result<void> load_secret(const std::string& id, const Object& object);

    std::map<std::string, Object, std::less<>> by_id_;
    std::map<std::string, block::Secret, std::less<>> secrets_;
    std::map<std::string, std::unique_ptr<block::filter::ThrottleGroup>, std::less<>> groups_;
};

} // namespace doppel::img
