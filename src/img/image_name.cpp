// SPDX-License-Identifier: Apache-2.0
#include "img/image_name.hpp"

#include <algorithm>
#include <array>

#include <fmt/core.h>

#include "block/image/open_image.hpp"

namespace doppel::img {

namespace {

using block::OptionValues;

constexpr std::array<std::string_view, 3> kFilters{"throttle", "copy-on-read", "dirty-bitmap"};
constexpr std::string_view kJson = "json:";

std::unexpected<Error> bad(std::string text, std::string hint = {}) {
    return base::fail(Errc::InvalidArgument, std::move(text), std::move(hint));
}

std::string take(OptionValues& values, const char* name) {
    const auto node = values.extract(name);
    return node.empty() ? std::string{} : node.mapped();
}

/// Those behind "PREFIX.", which are taken out.
OptionValues take_all(OptionValues& values, std::string_view prefix) {
    auto found = block::options_behind(values, prefix);
    std::erase_if(values, [&](const auto& one) { return one.first.starts_with(prefix); });
    return found;
}

std::string percent_encoded(std::string_view text) {
    std::string out;
    for (const char c : text) {
        const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                           (c >= 'A' && c <= 'Z') || c == '-' || c == '_' || c == '.' || c == '/';
        out += plain ? std::string{c} : fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
    return out;
}

Result<std::string> nbd_url(OptionValues values) {
    auto server = take_all(values, "server.");
    const auto kind = take(server, "type");
    const auto host = take(kind.empty() ? values : server, "host");
    const auto port = take(kind.empty() ? values : server, "port");
    const auto path = take(kind.empty() ? values : server, "path");
    const auto name = percent_encoded(take(values, "export"));
    values.merge(server);
    if (!values.empty())
        return bad(fmt::format("the driver nbd has no option '{}'", values.begin()->first),
                   "Known are host, port, path, export and server.type, .host, .port, .path; for "
                   "TLS use an nbds:// URL.");
    if (path.empty() == host.empty())
        return bad("the driver nbd wants either a host or the path of a socket");
    if (!path.empty())
        return fmt::format("nbd+unix:///{}?socket={}", name, percent_encoded(path));
    const bool six = host.find(':') != std::string::npos;
    return fmt::format("nbd://{}{}{}{}/{}", six ? "[" : "", host, six ? "]" : "",
                       port.empty() ? "" : ":" + port, name);
}

/// The path or URL of a protocol node's options.
Result<std::string> protocol_path(OptionValues values) {
    const auto driver = take(values, "driver");
    if (driver == "nbd")
        return nbd_url(std::move(values));
    const auto path = take(values, "filename");
    if (!driver.empty() && driver != "file" && driver != "host_device")
        return bad(fmt::format("driver '{}' keeps no files", driver),
                   "Known are file, host_device and nbd.");
    if (!values.empty())
        return bad(fmt::format("a file has no option '{}'", values.begin()->first),
                   "Give driver (file, host_device) and filename.");
    if (path.empty())
        return bad("the name of the file is missing", "Give file.filename=FILE.");
    return path;
}

bool is_protocol(std::string_view driver) {
    return driver == "file" || driver == "host_device" || driver == "nbd";
}

Result<ImageName> name_of(OptionValues values, const std::string& format) {
    ImageName name;
    const auto driver = values.contains("driver") ? values.at("driver") : std::string{};
    if (is_protocol(driver)) {
        name.path = DOPPEL_TRY(protocol_path(std::move(values)));
        name.format = format.empty() ? "raw" : format;
        return name;
    }
    values.erase("driver");
    auto below = take_all(values, "file.");
    if (std::ranges::find(kFilters, driver) != kFilters.end()) {
        name = DOPPEL_TRY(name_of(std::move(below), format));
        name.filters.insert(name.filters.begin(), FilterName{driver, std::move(values)});
        return name;
    }
    if (values.contains("filename")) // a short form
        below["filename"] = take(values, "filename");
    name.path = DOPPEL_TRY(protocol_path(std::move(below)));
    name.format = driver.empty() ? format : driver;
    name.options = std::move(values);
    return name;
}

} // namespace

ImageName ImageName::behind(std::string written, std::string format_of) const {
    return {
        std::move(written), std::move(format_of), block::options_behind(options, "backing."), {}};
}

Result<ImageName> parse_image_name(const std::string& text, bool as_options,
                                   const std::string& format) {
    const bool json = text.starts_with(kJson);
    if (!as_options && !json)
        return ImageName{text, format, {}, {}};
    auto values =
        json ? flatten_json(std::string_view{text}.substr(kJson.size())) : parse_options({text});
    auto name = values ? name_of(std::move(*values), format)
                       : Result<ImageName>{std::unexpected(std::move(values).error())};
    if (!name)
        return std::unexpected(
            std::move(name).error().with_context(json ? "json:" : "--image-opts"));
    return name;
}

Result<OptionValues> parse_options(const std::vector<std::string>& texts) {
    OptionValues values;
    for (const auto& text : texts) {
        std::string item;
        for (std::size_t i = 0; i <= text.size(); ++i) {
            if (i < text.size() &&
                (text[i] != ',' || (i + 1 < text.size() && text[i + 1] == ','))) {
                item += text[i];
                i += text[i] == ',';
                continue;
            }
            if (item.empty())
                continue;
            const auto equals = item.find('=');
            values[item.substr(0, equals)] =
                equals == std::string::npos ? "on" : item.substr(equals + 1);
            item.clear();
        }
    }
    return values;
}

} // namespace doppel::img
