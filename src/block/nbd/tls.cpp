// SPDX-License-Identifier: Apache-2.0
#include "block/nbd/tls.hpp"

#include <dlfcn.h>
#include <gnutls/gnutls.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include <fmt/core.h>

namespace doppel::block::nbd {

namespace {

constexpr const char* kLibrary = "libgnutls.so.30";

/// GnuTLS's functions by their own names.
struct Gnutls {
    decltype(&::gnutls_init) init;
    decltype(&::gnutls_deinit) deinit;
    decltype(&::gnutls_handshake) handshake;
    decltype(&::gnutls_record_recv) record_recv;
    decltype(&::gnutls_record_send) record_send;
    decltype(&::gnutls_strerror) strerror;
    decltype(&::gnutls_transport_set_int2) transport_set_int2;
    decltype(&::gnutls_priority_set_direct) priority_set_direct;
    decltype(&::gnutls_credentials_set) credentials_set;
    decltype(&::gnutls_server_name_set) server_name_set;
    decltype(&::gnutls_session_set_verify_cert) session_set_verify_cert;
    decltype(&::gnutls_certificate_server_set_request) certificate_server_set_request;
    decltype(&::gnutls_certificate_allocate_credentials) certificate_allocate_credentials;
    decltype(&::gnutls_certificate_free_credentials) certificate_free_credentials;
    decltype(&::gnutls_certificate_set_x509_trust_file) certificate_set_x509_trust_file;
    decltype(&::gnutls_certificate_set_x509_key_file) certificate_set_x509_key_file;
    decltype(&::gnutls_psk_allocate_server_credentials) psk_allocate_server_credentials;
    decltype(&::gnutls_psk_free_server_credentials) psk_free_server_credentials;
    decltype(&::gnutls_psk_set_server_credentials_file) psk_set_server_credentials_file;
    decltype(&::gnutls_psk_allocate_client_credentials) psk_allocate_client_credentials;
    decltype(&::gnutls_psk_free_client_credentials) psk_free_client_credentials;
    decltype(&::gnutls_psk_set_client_credentials) psk_set_client_credentials;

    bool load() {
        void* library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL); // stays
        if (library == nullptr)
            return false;
        bool whole = true;
        const auto find = [&](auto& function, const char* name) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(
                ::dlsym(library, name));
            whole = whole && function != nullptr;
        };
        find(init, "gnutls_init");
        find(deinit, "gnutls_deinit");
        find(handshake, "gnutls_handshake");
        find(record_recv, "gnutls_record_recv");
        find(record_send, "gnutls_record_send");
        find(strerror, "gnutls_strerror");
        find(transport_set_int2, "gnutls_transport_set_int2");
        find(priority_set_direct, "gnutls_priority_set_direct");
        find(credentials_set, "gnutls_credentials_set");
        find(server_name_set, "gnutls_server_name_set");
        find(session_set_verify_cert, "gnutls_session_set_verify_cert");
        find(certificate_server_set_request, "gnutls_certificate_server_set_request");
        find(certificate_allocate_credentials, "gnutls_certificate_allocate_credentials");
        find(certificate_free_credentials, "gnutls_certificate_free_credentials");
        find(certificate_set_x509_trust_file, "gnutls_certificate_set_x509_trust_file");
        find(certificate_set_x509_key_file, "gnutls_certificate_set_x509_key_file");
        find(psk_allocate_server_credentials, "gnutls_psk_allocate_server_credentials");
        find(psk_free_server_credentials, "gnutls_psk_free_server_credentials");
        find(psk_set_server_credentials_file, "gnutls_psk_set_server_credentials_file");
        find(psk_allocate_client_credentials, "gnutls_psk_allocate_client_credentials");
        find(psk_free_client_credentials, "gnutls_psk_free_client_credentials");
        find(psk_set_client_credentials, "gnutls_psk_set_client_credentials");
        return whole;
    }
};

class Session final : public Transport {
public:
    Session(const Gnutls& tls, gnutls_session_t session, std::string host)
        : tls_{tls}, session_{session}, host_{std::move(host)} {}
    ~Session() override { tls_.deinit(session_); }

    /// What the certificate must name; GnuTLS keeps the pointer.
    const std::string& host() const noexcept { return host_; }

    std::int64_t receive(std::span<std::byte> into) override {
        return translate(tls_.record_recv(session_, into.data(), into.size()));
    }
    std::int64_t send(std::span<const iovec> pieces) override {
        std::int64_t total = 0;
        for (const auto& piece : pieces) {
            for (std::size_t done = 0; done < piece.iov_len;) {
                const auto put = translate(
                    tls_.record_send(session_, static_cast<const char*>(piece.iov_base) + done,
                                     piece.iov_len - done));
                if (put < 0)
                    return total > 0 ? total : put; // the same error comes again
                done += static_cast<std::size_t>(put);
                total += put;
            }
        }
        return total;
    }
    int handshake() override { return static_cast<int>(translate(tls_.handshake(session_))); }
    std::string trouble() const override {
        return error_ < 0 ? tls_.strerror(static_cast<int>(error_)) : std::string{};
    }

private:
    std::int64_t translate(std::int64_t result) {
        if (result >= 0)
            return result;
        if (result == GNUTLS_E_AGAIN)
            return -EAGAIN;
        if (result == GNUTLS_E_INTERRUPTED)
            return -EINTR;
        error_ = result;
        return result == GNUTLS_E_PREMATURE_TERMINATION ? 0 : -EPROTO;
    }

    const Gnutls& tls_;
    gnutls_session_t session_;
    std::string host_;
    std::int64_t error_ = 0;
};

class Credentials final : public TlsCredentials {
public:
    explicit Credentials(TlsOptions options) : options_{std::move(options)} {}
    ~Credentials() override {
        if (certificate_ != nullptr)
            tls_.certificate_free_credentials(certificate_);
        if (psk_server_ != nullptr)
            tls_.psk_free_server_credentials(psk_server_);
        if (psk_client_ != nullptr)
            tls_.psk_free_client_credentials(psk_client_);
    }

    Result<void> load() {
        if (!tls_.load())
            return base::fail(Errc::Unsupported, fmt::format("TLS needs {}", kLibrary),
                              "Install the package libgnutls30.");
        if (!options_.psk_file.empty())
            return server() ? load_psk_server() : load_psk_client();
        return load_x509();
    }

    Result<std::unique_ptr<Transport>> session(int fd, const std::string& host) override {
        gnutls_session_t raw = nullptr;
        const unsigned role = server() ? GNUTLS_SERVER : GNUTLS_CLIENT;
        DOPPEL_TRY_VOID(
            check(tls_.init(&raw, role | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL), "start TLS"));
        auto session = std::make_unique<Session>(tls_, raw, host);
        const bool psk = certificate_ == nullptr;
        DOPPEL_TRY_VOID(check(tls_.priority_set_direct(
                                  raw, psk ? "NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK" : "NORMAL", nullptr),
                              "start TLS"));
        void* credentials = certificate_;
        if (psk)
            credentials = server() ? static_cast<void*>(psk_server_) : psk_client_;
        DOPPEL_TRY_VOID(check(
            tls_.credentials_set(raw, psk ? GNUTLS_CRD_PSK : GNUTLS_CRD_CERTIFICATE, credentials),
            "start TLS"));
        if (!psk)
            demand_certificate(raw, session->host());
        tls_.transport_set_int2(raw, fd, fd);
        return session;
    }

private:
    bool server() const { return options_.role == TlsRole::Server; }

    void demand_certificate(gnutls_session_t session, const std::string& host) {
        if (!server()) {
            if (!host.empty())
                tls_.server_name_set(session, GNUTLS_NAME_DNS, host.data(), host.size());
            tls_.session_set_verify_cert(session, host.empty() ? nullptr : host.c_str(), 0);
        } else if (options_.verify_peer) {
            tls_.certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
            tls_.session_set_verify_cert(session, nullptr, 0);
        }
    }

    Result<void> check(int code, const std::string& what) const {
        if (code >= 0)
            return {};
        return base::fail(Errc::InvalidArgument, fmt::format("{}: {}", what, tls_.strerror(code)));
    }

    Result<void> load_x509() {
        const auto file = [&](const char* name) { return options_.x509_folder + "/" + name; };
        const auto ca = file("ca-cert.pem");
        const auto own = file(server() ? "server-cert.pem" : "client-cert.pem");
        const auto key = file(server() ? "server-key.pem" : "client-key.pem");
        DOPPEL_TRY_VOID(check(tls_.certificate_allocate_credentials(&certificate_), "TLS"));
        DOPPEL_TRY_VOID(check(
            tls_.certificate_set_x509_trust_file(certificate_, ca.c_str(), GNUTLS_X509_FMT_PEM),
            fmt::format("certificate of the authority '{}'", ca)));
        if (!server() && ::access(own.c_str(), F_OK) != 0)
            return {}; // a client needs none if the server asks for none
        return check(tls_.certificate_set_x509_key_file(certificate_, own.c_str(), key.c_str(),
                                                        GNUTLS_X509_FMT_PEM),
                     fmt::format("certificate '{}' with key '{}'", own, key));
    }

    Result<void> load_psk_server() {
        if (::access(options_.psk_file.c_str(), R_OK) != 0)
            return base::fail_errno(errno, fmt::format("read '{}'", options_.psk_file));
        DOPPEL_TRY_VOID(check(tls_.psk_allocate_server_credentials(&psk_server_), "TLS"));
        return check(tls_.psk_set_server_credentials_file(psk_server_, options_.psk_file.c_str()),
                     fmt::format("keys '{}'", options_.psk_file));
    }

    Result<void> load_psk_client() {
        std::ifstream file{options_.psk_file};
        if (!file)
            return base::fail_errno(errno, fmt::format("read '{}'", options_.psk_file));
        const auto prefix = options_.user + ":";
        std::string line;
        while (std::getline(file, line) && !line.starts_with(prefix)) {
        }
        if (!line.starts_with(prefix))
            return base::fail(Errc::NotFound, fmt::format("'{}' has no key of user '{}'",
                                                          options_.psk_file, options_.user));
        DOPPEL_TRY_VOID(check(tls_.psk_allocate_client_credentials(&psk_client_), "TLS"));
        const gnutls_datum_t key{reinterpret_cast<unsigned char*>(line.data()) + prefix.size(),
                                 static_cast<unsigned>(line.size() - prefix.size())};
        return check(tls_.psk_set_client_credentials(psk_client_, options_.user.c_str(), &key,
                                                     GNUTLS_PSK_KEY_HEX),
                     fmt::format("key of user '{}'", options_.user));
    }

    TlsOptions options_;
    Gnutls tls_{};
    gnutls_certificate_credentials_t certificate_ = nullptr;
    gnutls_psk_server_credentials_t psk_server_ = nullptr;
    gnutls_psk_client_credentials_t psk_client_ = nullptr;
};

} // namespace

Result<std::unique_ptr<TlsCredentials>> TlsCredentials::load(const TlsOptions& options) {
    auto credentials = std::make_unique<Credentials>(options);
    DOPPEL_TRY_VOID(credentials->load());
    return credentials;
}

} // namespace doppel::block::nbd
