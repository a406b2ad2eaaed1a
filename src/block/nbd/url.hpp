// SPDX-License-Identifier: Apache-2.0
#pragma once
/// NBD URLs (doc/uri.md of NetworkBlockDevice/nbd): nbd://HOST[:PORT]/EXPORT,
/// nbd+unix:///EXPORT?socket=PATH, and nbds://, nbds+unix:// with TLS; our own parameter is
/// timeout=SECONDS. Any thread.
#include <chrono>
#include <string>

#include "base/result.hpp"

namespace doppel::block::nbd {

/// A flush of all that a slow disk's server has cached takes long.
constexpr std::chrono::seconds kPatience{120};

struct Url {
    std::string text; // as the user wrote it
    std::string export_name;
    std::string host = "localhost"; // TCP
    std::string port = "10809";
    std::string socket; // path; empty: TCP
    bool tls = false;
    std::string tls_certificates; // folder
    std::string tls_psk_file;
    std::string tls_user = "qemu";
    std::string tls_host; // whom the server's certificate names
    /// How long a server may say nothing while something is asked of it; 0: for ever.
    std::chrono::seconds patience = kPatience;
};

bool is_url(const std::string& name);
/// Errors name what is wrong with the URL.
base::Result<Url> parse_url(const std::string& text);

} // namespace doppel::block::nbd
