// SPDX-License-Identifier: Apache-2.0
#include "block/nbd/url.hpp"

#include <sys/un.h>

#include <charconv>

#include <fmt/core.h>

namespace doppel::block::nbd {

using base::Errc;
using base::Result;

namespace {

constexpr unsigned kMaxPatience = 86400;
constexpr const char* kForms =
    "Use nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH (nbds… for TLS).";

std::unexpected<base::Error> bad(const std::string& url, const std::string& what) {
    return base::fail(Errc::InvalidArgument, fmt::format("'{}': {}", url, what), kForms);
}

Result<std::string> decode(const std::string& url, std::string_view text) {
    std::string plain;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            plain += text[i];
            continue;
        }
        unsigned value = 0;
        const auto* begin = text.data() + i + 1;
        const auto* end = text.size() - i > 2 ? begin + 2 : begin;
        const auto [stop, error] = std::from_chars(begin, end, value, 16);
        if (error != std::errc{} || stop != end || value == 0)
            return bad(url, fmt::format("'{}' is no %XX", text.substr(i, 3)));
        plain += static_cast<char>(value);
        i += 2;
    }
    return plain;
}

Result<std::chrono::seconds> parse_patience(const std::string& url, std::string_view text) {
    unsigned seconds = 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
    if (error != std::errc{} || stop != text.data() + text.size() || seconds > kMaxPatience)
        return bad(url, fmt::format("timeout is '{}', allowed are 0 (none) to {} seconds", text,
                                    kMaxPatience));
    return std::chrono::seconds{seconds};
}

Result<void> set_parameter(Url& url, const std::string& name, std::string value) {
    if (name == "socket")
        url.socket = std::move(value);
    else if (name == "tls-certificates")
        url.tls_certificates = std::move(value);
    else if (name == "tls-psk-file")
        url.tls_psk_file = std::move(value);
    else if (name == "tls-username")
        url.tls_user = std::move(value);
    else if (name == "tls-hostname")
        url.tls_host = std::move(value);
    else if (name == "timeout")
        url.patience = DOPPEL_TRY(parse_patience(url.text, value));
    else
        return bad(url.text, fmt::format("'{}' is unknown; known are socket, timeout, "
                                         "tls-certificates, tls-psk-file, tls-username and "
                                         "tls-hostname",
                                         name));
    return {};
}

Result<void> parse_query(Url& url, std::string_view query) {
    while (!query.empty()) {
        const auto end = query.find_first_of("&;");
        const auto item = query.substr(0, end);
        query = end == std::string_view::npos ? std::string_view{} : query.substr(end + 1);
        const auto equals = item.find('=');
        if (equals == std::string_view::npos)
            return bad(url.text, fmt::format("'{}' has no value", item));
        auto value = DOPPEL_TRY(decode(url.text, item.substr(equals + 1)));
        DOPPEL_TRY_VOID(set_parameter(url, std::string{item.substr(0, equals)}, std::move(value)));
    }
    return {};
}

/// USER@HOST:PORT, HOST perhaps in brackets.
Result<void> parse_authority(Url& url, std::string_view authority) {
    if (const auto at = authority.rfind('@'); at != std::string_view::npos) {
        url.tls_user = DOPPEL_TRY(decode(url.text, authority.substr(0, at)));
        authority.remove_prefix(at + 1);
    }
    auto host = authority;
    std::string_view port;
    if (authority.starts_with('[')) {
        const auto close = authority.find(']');
        if (close == std::string_view::npos)
            return bad(url.text, "the address has no ']'");
        host = authority.substr(1, close - 1);
        port = authority.substr(close + 1);
    } else if (const auto colon = authority.find(':'); colon != std::string_view::npos) {
        host = authority.substr(0, colon);
        port = authority.substr(colon);
    }
    if (!port.empty()) {
        unsigned number = 0;
        const auto digits = port.substr(1);
        const auto [stop, error] =
            std::from_chars(digits.data(), digits.data() + digits.size(), number);
        if (port[0] != ':' || error != std::errc{} || stop != digits.data() + digits.size() ||
            number == 0 || number > 65535)
            return bad(url.text, fmt::format("'{}' is no port", digits));
        url.port = std::string{digits};
    }
    if (!host.empty())
        url.host = DOPPEL_TRY(decode(url.text, host));
    return {};
}

} // namespace

bool is_url(const std::string& name) {
    return name.starts_with("nbd://") || name.starts_with("nbds://") ||
           name.starts_with("nbd+unix://") || name.starts_with("nbds+unix://");
}

Result<Url> parse_url(const std::string& text) {
    Url url;
    url.text = text;
    const std::string_view all = text;
    const auto scheme_end = all.find("://");
    const auto scheme = all.substr(0, scheme_end);
    url.tls = scheme.starts_with("nbds");
    const bool unix_socket = scheme.ends_with("+unix");
    auto rest = all.substr(scheme_end + 3);
    const auto question = rest.find('?');
    const auto query =
        question == std::string_view::npos ? std::string_view{} : rest.substr(question + 1);
    rest = rest.substr(0, question);
    const auto slash = rest.find('/');
    const auto authority = rest.substr(0, slash);
    DOPPEL_TRY_VOID(parse_authority(url, authority));
    if (slash != std::string_view::npos)
        url.export_name = DOPPEL_TRY(decode(text, rest.substr(slash + 1)));
    DOPPEL_TRY_VOID(parse_query(url, query));
    if (unix_socket && url.socket.empty())
        return bad(text, "the path of the socket is missing");
    if (!unix_socket && !url.socket.empty())
        return bad(text, "a socket belongs to nbd+unix://");
    if (url.socket.size() >= sizeof(sockaddr_un::sun_path))
        return bad(text, "the path of the socket is too long");
    if (url.tls && url.tls_certificates.empty() == url.tls_psk_file.empty())
        return bad(text, "TLS wants either tls-certificates=FOLDER or tls-psk-file=FILE");
    if (!url.tls && !(url.tls_certificates.empty() && url.tls_psk_file.empty()))
        return bad(text, "TLS belongs to nbds://");
    if (url.export_name.size() > 4096)
        return bad(text, "the export's name is longer than 4096 bytes");
    return url;
}

} // namespace doppel::block::nbd
