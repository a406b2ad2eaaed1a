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

#include "description/network.hpp"

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

Result<void> set_of_disk(description::Disk& disk, const std::string& text) {
    const auto [key, value] = key_and_value(text);
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
    else
        return base::fail(Errc::InvalidArgument,
                          fmt::format("disk '{}' has no option '{}'", disk.path, key),
                          "there are format, readonly, serial, cache and addr");
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

Result<description::Disk> parse_disk(const std::string& text) {
    const auto parts = split(text);
    description::Disk disk;
    disk.path = parts.front();
    if (disk.path.empty())
        return base::fail(Errc::InvalidArgument, fmt::format("'{}' names no file", text),
                          "write it like disk.img,format=raw");
    for (std::size_t i = 1; i < parts.size(); ++i)
        DOPPEL_TRY_VOID(set_of_disk(disk, parts[i]));
    return disk;
}

Result<void> check_disk(const description::Disk& disk) {
    struct stat info{};
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

Result<std::uint32_t> parse_threshold(const std::string& value) {
    std::uint32_t jumps = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), jumps);
    if (error != std::errc{} || end != value.data() + value.size() || jumps == 0)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("loop-threshold '{}' is not a number above 0", value),
                          "give the jumps back to its beginning that make a loop hot, such as 32");
    return jumps;
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
        else if (key == "jitdump" && !value.empty())
            translation.jit_dump = value;
        else if (key == "loop-threshold")
            translation.tuning.loop_threshold = DOPPEL_TRY(parse_threshold(value));
        else if (key == "chaos")
            translation.chaos = DOPPEL_TRY(parse_seed(value));
        else if (key == "cache")
            translation.cache_mib = DOPPEL_TRY(parse_cache(value));
        else
            return base::fail(Errc::InvalidArgument, fmt::format("'{}' is unknown", part),
                              fmt::format("use {}loop-threshold=JUMPS, chaos=SEED, cache=MIB, "
                                          "jitdump=DIRECTORY",
                                          names));
    }
    return translation;
}

} // namespace doppel::cli
