// SPDX-License-Identifier: Apache-2.0
#pragma once
/// --object TYPE,id=ID,…: what an image or a server needs beside the image, as QEMU's users write
/// it. Any thread.
#include <map>
#include <string>

#include "block/nbd/tls.hpp"
#include "img/arguments.hpp"

namespace doppel::img {

struct Object {
    std::string type;
    std::map<std::string, std::string, std::less<>> values;
};

class Objects {
public:
    /// Of all --object arguments. Errors: a type or a property is unknown, an id is missing or
    /// there twice.
    static Result<Objects> parse(const Arguments& arguments);
    /// tls-creds-x509 or tls-creds-psk. Errors: there is none of that id, or it is for the other
    /// end.
    Result<block::nbd::TlsOptions> tls(const std::string& id, block::nbd::TlsRole role) const;

private:
    std::map<std::string, Object, std::less<>> by_id_;
};

} // namespace doppel::img
