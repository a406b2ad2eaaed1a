// SPDX-License-Identifier: Apache-2.0
#pragma once
/// TLS for NBD by GnuTLS, which is loaded when the first credentials are asked for: most runs need
/// none of it. Owner thread only.
#include <memory>
#include <string>

#include "block/nbd/stream.hpp"

namespace doppel::block::nbd {

enum class TlsRole : std::uint8_t { Server, Client };

/// As in QEMU's tls-creds-x509 and tls-creds-psk.
struct TlsOptions {
    TlsRole role = TlsRole::Client;
    /// Folder of ca-cert.pem, and of server-cert.pem and server-key.pem, or client-….
    std::string x509_folder;
    std::string psk_file;      // lines "user:hexadecimal key", as psktool writes them
    std::string user = "qemu"; // client, PSK
    bool verify_peer = true;   // server: clients must have a certificate of the CA
};

class TlsCredentials {
public:
    virtual ~TlsCredentials() = default;
    /// Errors: GnuTLS is not installed; a file is missing or not what it should be.
    static Result<std::unique_ptr<TlsCredentials>> load(const TlsOptions& options);
    /// For one connection. `host`, of a client: whom the server's certificate must name.
    virtual Result<std::unique_ptr<Transport>> session(int fd, const std::string& host) = 0;
};

} // namespace doppel::block::nbd
