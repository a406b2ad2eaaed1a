// SPDX-License-Identifier: Apache-2.0
#include "img/objects.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <vector>

#include <fmt/core.h>

#include "block/crypto/encoded_secret.hpp"
#include "block/crypto/secret_file.hpp"
#include "img/image_name.hpp"

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
        {"throttle-group", {}}, // checked by what makes it
        {"secret", {"id", "data", "file", "format", "keyid", "iv"}},
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
        if (!type->properties.empty() &&
            std::ranges::find(type->properties, name) == type->properties.end())
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

Result<block::Secret> Objects::secret(const std::string& id) const {
    const auto found = secrets_.find(id);
    if (found == secrets_.end())
        return bad(fmt::format("there is no secret with the id '{}'", id),
                   fmt::format("Define it: --object secret,id={},file=FILE.", id));
    return block::Secret::of(found->second.span());
}

Result<block::filter::ThrottleGroup*> Objects::throttle_group(const std::string& id) const {
    const auto found = groups_.find(id);
    if (found == groups_.end())
        return bad(fmt::format("there is no throttle group with the id '{}'", id),
                   fmt::format("Define it: --object throttle-group,id={},iops-total=100.", id));
    return found->second.get();
}

/// What there is behind the object, when it is more than its values.
Result<void> Objects::make(const std::string& id, Object& object) {
    if (object.type == "secret") {
        DOPPEL_TRY_VOID(load_secret(id, object));
        if (const auto data = object.values.extract("data"); !data.empty())
            ::explicit_bzero(data.mapped().data(), data.mapped().size());
    } else if (object.type == "throttle-group") {
        block::OptionValues limits; // QEMU takes "limits.iops-total" and "x-iops-total"
        for (const auto& [name, value] : object.values)
            if (name != "id")
                limits[name.starts_with("limits.") ? name.substr(7)
                       : name.starts_with("x-")    ? name.substr(2)
                                                   : name] = value;
        groups_.emplace(id, DOPPEL_TRY(block::filter::ThrottleGroup::create(limits)));
    }
    return {};
}

Result<void> Objects::load_secret(const std::string& id, const Object& object) {
    const auto form = value_of(object, "format", "raw");
    if (form != "raw" && form != "base64")
        return bad(fmt::format("format '{}' is unknown", form), "Use raw or base64.");
    if (object.values.contains("data") == object.values.contains("file"))
        return bad("it wants either data=… or file=FILE");
    auto secret = object.values.contains("file")
                      ? DOPPEL_TRY(block::crypto::read_secret_file(value_of(object, "file")))
                      : block::Secret::of(value_of(object, "data"));
    if (form == "base64")
        secret = DOPPEL_TRY(block::crypto::decode_base64(secret.span()));
    const auto key_id = value_of(object, "keyid");
    if (!key_id.empty()) { // encrypted with another secret
        const auto key = DOPPEL_TRY(this->secret(key_id));
        const auto iv_text = value_of(object, "iv");
        const auto iv = DOPPEL_TRY(
            block::crypto::decode_base64(std::as_bytes(std::span{iv_text.data(), iv_text.size()})));
        secret =
            DOPPEL_TRY(block::crypto::decrypt_secret(key.span(), iv.span(), std::move(secret)));
    }
    secrets_.emplace(id, std::move(secret));
    return {};
}

Result<Objects> Objects::parse(const Arguments& arguments) {
    Objects objects;
    for (const auto& text : arguments.all("object")) {
        auto object = DOPPEL_TRY(parse_object(text));
        const auto id = value_of(object, "id");
        if (!objects.by_id_.emplace(id, std::move(object)).second)
            return bad(fmt::format("--object: two objects have the id '{}'", id));
        auto& kept = objects.by_id_.at(id);
        if (auto made = objects.make(id, kept); !made)
            return std::unexpected(std::move(made).error().with_context(
                fmt::format("--object {} '{}'", kept.type, id)));
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
