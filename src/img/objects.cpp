// SPDX-License-Identifier: Apache-2.0
#include "img/objects.hpp"

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include <fmt/core.h>

#include "img/images.hpp"

namespace doppel::img {

namespace {

struct ObjectType {
    std::string_view name;
    std::vector<std::string_view> properties;
};

const std::vector<ObjectType>& types() {
    static const std::vector<ObjectType> kTypes{
        {"tls-creds-x509", {"id", "dir", "endpoint", "verify-peer"}},
        {"tls-creds-psk", {"id", "dir", "endpoint", "username"}},
    };
    return kTypes;
}

std::unexpected<Error> bad(std::string text, std::string hint = {}) {
    return base::fail(Errc::InvalidArgument, std::move(text), std::move(hint));
}

Result<Object> parse_object(const std::string& text) {
    const auto comma = text.find(',');
    Object object;
    object.type = text.substr(0, comma);
    const auto type = std::ranges::find(types(), object.type, &ObjectType::name);
    if (type == types().end()) {
        std::string known;
        for (const auto& one : types())
            known += (known.empty() ? "" : ", ") + std::string{one.name};
        return bad(fmt::format("--object: type '{}' is unknown", object.type),
                   fmt::format("Known are {}.", known));
    }
    if (comma != std::string::npos)
        object.values = DOPPEL_TRY(parse_options({text.substr(comma + 1)}));
    for (const auto& [name, value] : object.values)
        if (std::ranges::find(type->properties, name) == type->properties.end())
            return bad(fmt::format("--object {}: there is no property '{}'", object.type, name));
    if (!object.values.contains("id"))
        return bad(fmt::format("--object {} has no id", object.type), "Add id=NAME.");
    return object;
}

std::string value_of(const Object& object, std::string_view name, std::string standard = {}) {
    const auto found = object.values.find(name);
    return found == object.values.end() ? std::move(standard) : found->second;
}

} // namespace

Result<Objects> Objects::parse(const Arguments& arguments) {
    Objects objects;
    for (const auto& text : arguments.all("object")) {
        auto object = DOPPEL_TRY(parse_object(text));
        const auto id = value_of(object, "id");
        if (!objects.by_id_.emplace(id, std::move(object)).second)
            return bad(fmt::format("--object: two objects have the id '{}'", id));
    }
    return objects;
}

Result<block::nbd::TlsOptions> Objects::tls(const std::string& id, block::nbd::TlsRole role) const {
    const auto found = by_id_.find(id);
    if (found == by_id_.end() || !found->second.type.starts_with("tls-creds-"))
        return bad(fmt::format("there is no TLS object with the id '{}'", id),
                   "Define it: --object tls-creds-x509,id=ID,dir=FOLDER,endpoint=server.");
    const auto& object = found->second;
    const bool server = role == block::nbd::TlsRole::Server;
    // QEMU's default is the client.
    if (value_of(object, "endpoint", "client") != (server ? "server" : "client"))
        return bad(fmt::format("TLS object '{}' is for the other end", id),
                   server ? "Add endpoint=server." : "Add endpoint=client.");
    const auto folder = value_of(object, "dir");
    if (folder.empty())
        return bad(fmt::format("TLS object '{}' names no folder", id), "Add dir=FOLDER.");
    block::nbd::TlsOptions options;
    options.role = role;
    if (object.type == "tls-creds-psk")
        options.psk_file = folder + "/keys.psk";
    else
        options.x509_folder = folder;
    options.user = value_of(object, "username", "qemu");
    const auto verify = value_of(object, "verify-peer", "on");
    constexpr std::array<std::string_view, 6> kSwitch{"on", "yes", "true", "off", "no", "false"};
    if (std::ranges::find(kSwitch, verify) == kSwitch.end())
        return bad(fmt::format("verify-peer is '{}'", verify), "Use on or off.");
    options.verify_peer = verify == "on" || verify == "yes" || verify == "true";
    return options;
}

} // namespace doppel::img
