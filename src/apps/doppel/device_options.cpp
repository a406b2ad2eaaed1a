// SPDX-License-Identifier: Apache-2.0
#include "apps/doppel/device_options.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <utility>
#include <vector>

#include <fmt/core.h>

#include "block/filter/throttle_group.hpp"
#include "block/image/open_image.hpp"
#include "description/network.hpp"
#include "img/image_name.hpp"

namespace doppel::cli {

using base::Errc;
using base::Result;

namespace {

/// Cut at commas; two of them stand for one that is meant.
std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> parts(1);
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != ',')
            parts.back() += text[i];
        else if (i + 1 < text.size() && text[i + 1] == ',')
            parts.back() += text[i++];
        else
            parts.emplace_back();
    }
    return parts;
}

/// "key=value"; the value is empty where there is no "=".
std::pair<std::string, std::string> key_and_value(const std::string& text) {
    const auto equals = text.find('=');
    return {text.substr(0, equals), equals == std::string::npos ? "" : text.substr(equals + 1)};
}

Result<bool> parse_switch(const std::string& key, const std::string& value) {
    if (value == "on" || value == "off")
        return value == "on";
    return base::fail(Errc::InvalidArgument,
                      fmt::format("'{}={}' is neither on nor off", key, value),
                      fmt::format("write {}=on or {}=off", key, key));
}

/// QEMU's names of a limit, "iops_rd", "bps-write-max", "throttling.iops-total", as the filter has
/// them; empty: it is none.
std::string limit_name(std::string key) {
    constexpr std::string_view kPrefix = "throttling.";
    if (key.starts_with(kPrefix))
        key.erase(0, kPrefix.size());
    if (!key.starts_with("iops") && !key.starts_with("bps"))
        return {};
    std::ranges::replace(key, '_', '-');
    const auto kind_at = key.find('-');
    auto rest = kind_at == std::string::npos ? std::string{} : key.substr(kind_at);
    for (const auto& [brief, full] :
         {std::pair{"-rd", "-read"}, std::pair{"-wr", "-write"}, std::pair{"-total", "-total"}}) {
        const std::string_view name = brief;
        if (rest == name || rest.starts_with(std::string{name} + "-"))
            rest.replace(0, name.size(), full);
    }
    if (rest.empty() || rest.starts_with("-max"))
        rest.insert(0, "-total");
    return key.substr(0, kind_at) + rest;
}

/// How an encrypted image is opened, as in doppel-img's --image-opts.
bool is_open_option(std::string_view key) {
    return key.starts_with("encrypt.") || key.starts_with("backing.") || key == "key-secret";
}

Result<void> set_of_disk(description::Disk& disk, const std::string& text) {
    const auto [key, value] = key_and_value(text);
    const auto limit = limit_name(key);
    if (key == "readonly")
        disk.read_only = DOPPEL_TRY(parse_switch(key, value));
    else if (value.empty())
        return base::fail(Errc::InvalidArgument,
                          fmt::format("'{}' of disk '{}' is not KEY=VALUE", text, disk.path),
                          "two commas stand for one in a file's name");
    else if (key == "format")
        disk.format = value;
    else if (key == "serial")
        disk.serial = value;
    else if (key == "cache")
        disk.cache = value;
    else if (key == "addr")
        disk.address = value;
    else if (is_open_option(key))
        disk.options[key] = value;
    else if (!limit.empty())
        disk.limits[limit] = value;
    else
        return base::fail(Errc::InvalidArgument,
                          fmt::format("disk '{}' has no option '{}'", disk.path, key),
                          "there are format, readonly, serial, cache, addr, iops, bps (and _rd, "
                          "_wr, _max), encrypt.key-secret and key-secret");
    return {};
}

Result<std::uint32_t> parse_mtu(const std::string& value) {
    std::uint32_t mtu = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), mtu);
    if (error != std::errc{} || end != value.data() + value.size())
        return base::fail(
            Errc::InvalidArgument, fmt::format("MTU '{}' is not a number", value),
            fmt::format("give {} to {} bytes", description::kMinMtu, description::kMaxMtu));
    return mtu;
}

Result<void> set_of_net(description::Net& net, const std::string& text) {
    const auto [key, value] = key_and_value(text);
    if (key == "ipv6")
        net.ipv6 = DOPPEL_TRY(parse_switch(key, value));
    else if (key == "restrict")
        net.restricted = DOPPEL_TRY(parse_switch(key, value));
    else if (value.empty())
        return base::fail(Errc::InvalidArgument,
                          fmt::format("'{}' of network 'user' is not KEY=VALUE", text));
    else if (key == "forward")
        net.forwards.push_back(
            description::format_forward(DOPPEL_TRY(description::parse_forward(value))));
    else if (key == "mac")
        net.mac = value;
    else if (key == "subnet")
        net.subnet = value;
    else if (key == "hostname")
        net.hostname = value;
    else if (key == "mtu")
        net.mtu = DOPPEL_TRY(parse_mtu(value));
    else if (key == "addr")
        net.address = value;
    else
        return base::fail(Errc::InvalidArgument,
                          fmt::format("network 'user' has no option '{}'", key),
                          "there are forward, mac, subnet, hostname, mtu, ipv6, restrict and addr");
    return {};
}

} // namespace

Result<std::optional<description::Net>> parse_net(const std::string& text) {
    const auto parts = split(text);
    if (text == "none")
        return std::nullopt;
    const auto kind = description::parse_net_kind(parts.front());
    if (!kind)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("network '{}' is unknown", parts.front()),
                          "use user or none");
    description::Net net;
    net.kind = *kind;
    for (std::size_t i = 1; i < parts.size(); ++i)
        DOPPEL_TRY_VOID(set_of_net(net, parts[i]));
    return net;
}

namespace {

/// Where the object of "json:{…},readonly=on" ends.
std::size_t end_of_json(const std::string& text) {
    std::size_t depth = 0;
    bool quoted = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (quoted && text[i] == '\\')
            ++i;
        else if (text[i] == '"')
            quoted = !quoted;
        else if (!quoted && text[i] == '{')
            ++depth;
        else if (!quoted && text[i] == '}' && --depth == 0)
            return i + 1;
    }
    return text.size();
}

/// "json:{"driver": "qcow2", "file": {…}, "encrypt.key-secret": …}": what else names it.
Result<description::Disk> disk_of_json(const std::string& json) {
    auto name = DOPPEL_TRY(img::parse_image_name(json, false, ""));
    if (!name.filters.empty())
        return base::fail(Errc::InvalidArgument,
                          fmt::format("driver '{}' stands in front of no disk of a VM",
                                      name.filters.front().driver),
                          "write limits as iops=N,bps=N");
    description::Disk disk;
    disk.path = std::move(name.path);
    if (!name.format.empty())
        disk.format = std::move(name.format);
    for (auto& [option, value] : name.options)
        disk.options[option] = std::move(value);
    return disk;
}

} // namespace

Result<description::Disk> parse_disk(const std::string& text) {
    description::Disk disk;
    auto rest = text;
    if (text.starts_with("json:")) {
        const auto end = end_of_json(text);
        disk = DOPPEL_TRY(disk_of_json(text.substr(0, end)));
        rest.erase(0, end);
    }
    const auto parts = split(rest);
    if (disk.path.empty())
        disk.path = parts.front();
    if (disk.path.empty())
        return base::fail(Errc::InvalidArgument, fmt::format("'{}' names no file", text),
                          "write it like disk.img,format=raw");
    for (std::size_t i = 1; i < parts.size(); ++i)
        DOPPEL_TRY_VOID(set_of_disk(disk, parts[i]));
    if (auto limits = block::filter::ThrottleGroup::create(disk.limits); !limits)
        return std::unexpected(
            std::move(limits).error().with_context(fmt::format("disk '{}'", disk.path)));
    return disk;
}

Result<description::Secret> parse_secret(const std::string& text) {
    const auto parts = split(text);
    if (parts.front() != "secret")
        return base::fail(Errc::InvalidArgument, fmt::format("type '{}' is unknown", parts.front()),
                          "there is secret, such as secret,id=NAME,file=FILE");
    description::Secret secret;
    for (std::size_t i = 1; i < parts.size(); ++i) {
        const auto [key, value] = key_and_value(parts[i]);
        if (key == "id")
            secret.id = value;
        else if (key == "file")
            secret.file = value;
        else if (key == "format")
            secret.format = value;
        else if (key == "data")
            return base::fail(Errc::InvalidArgument, "data=… would show the secret to every user",
                              "write it to a file, and give file=FILE");
        else
            return base::fail(Errc::InvalidArgument, fmt::format("a secret has no '{}'", key),
                              "there are id, file and format");
    }
    if (secret.id.empty() || secret.file.empty())
        return base::fail(Errc::InvalidArgument, fmt::format("'{}' wants an id and a file", text),
                          "write it like secret,id=NAME,file=FILE");
    if (::access(secret.file.c_str(), R_OK) != 0)
        return base::fail_errno(errno, fmt::format("cannot read secret '{}'", secret.file));
    return secret;
}

Result<void> check_disk(const description::Disk& disk) {
    struct stat info{};
    if (block::is_network_name(disk.path))
        return {};
    if (::stat(disk.path.c_str(), &info) != 0)
        return base::fail_errno(errno, fmt::format("cannot open disk '{}'", disk.path));
    if (S_ISDIR(info.st_mode))
        return base::fail(Errc::InvalidArgument, fmt::format("disk '{}' is a directory", disk.path),
                          "give a file");
    if (::access(disk.path.c_str(), R_OK) != 0)
        return base::fail_errno(errno, fmt::format("cannot read disk '{}'", disk.path));
    if (!disk.read_only && ::access(disk.path.c_str(), W_OK) != 0)
        return base::fail_errno(errno, fmt::format("cannot write to disk '{}'", disk.path),
                                "add ,readonly=on if the guest shall only read it");
    return {};
}

namespace {

Result<std::uint32_t> parse_threshold(std::string_view name, const std::string& value,
                                      const char* advice) {
    std::uint32_t number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc{} || end != value.data() + value.size() || number == 0)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("{} '{}' is not a number above 0", name, value), advice);
    return number;
}

Result<std::uint32_t> parse_cache(const std::string& value) {
    std::uint32_t mib = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), mib);
    if (error != std::errc{} || end != value.data() + value.size())
        return base::fail(Errc::InvalidArgument, fmt::format("'cache={}' is no number", value),
                          "give the room for translated code in MiB, such as 128");
    return mib;
}

Result<std::uint64_t> parse_seed(std::string_view value) {
    std::uint64_t seed = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), seed);
    if (error != std::errc{} || end != value.data() + value.size() || seed == 0)
        return base::fail(Errc::InvalidArgument, fmt::format("'chaos={}' names no seed", value),
                          "give a number from 1 to 18446744073709551615");
    return seed;
}

} // namespace

Result<description::Translation> parse_translation(const std::string& text) {
    description::Translation translation;
    std::string names;
    for (const auto& [name, member] : description::kTuningNames)
        names += fmt::format("no-{}, ", name);
    for (const auto& part : split(text)) {
        const auto [key, value] = key_and_value(part);
        const auto* const known =
            std::ranges::find_if(description::kTuningNames, [&part](const auto& tuning) {
                return part == fmt::format("no-{}", tuning.name);
            });
        if (known != description::kTuningNames.end())
            translation.tuning.*known->member = false;
        else if (part == "direct=always")
            translation.tuning.direct_always = true;
        else if (key == "jitdump" && !value.empty())
            translation.jit_dump = value;
        else if (key == "loop-threshold")
            translation.tuning.loop_threshold = DOPPEL_TRY(parse_threshold(
                key, value,
                "give the jumps back to its beginning that make a loop hot, such as 32"));
        else if (key == "busy-calls")
            translation.tuning.busy_calls = DOPPEL_TRY(parse_threshold(
                key, value, "give the calls of checks until a page is made anew, such as 16381"));
        else if (key == "chaos")
            translation.chaos = DOPPEL_TRY(parse_seed(value));
        else if (key == "cache")
            translation.cache_mib = DOPPEL_TRY(parse_cache(value));
        else
            return base::fail(Errc::InvalidArgument, fmt::format("'{}' is unknown", part),
                              fmt::format("use {}direct=always, loop-threshold=JUMPS, "
                                          "busy-calls=CALLS, chaos=SEED, cache=MIB, "
                                          "jitdump=DIRECTORY",
                                          names));
    }
    return translation;
}

} // namespace doppel::cli
