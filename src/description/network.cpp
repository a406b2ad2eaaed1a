// SPDX-License-Identifier: Apache-2.0
#include "description/network.hpp"

#include <charconv>
#include <optional>
#include <vector>

#include <fmt/core.h>

namespace doppel::description {

using base::Errc;
using base::Result;

namespace {

constexpr const char* kForwardHint = "write it like tcp:2222:22 or tcp:127.0.0.1:2222:22";
constexpr unsigned kMinPrefix = 8, kMaxPrefix = 27;

std::optional<unsigned> number(std::string_view text, unsigned limit) {
    unsigned value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || value > limit)
        return std::nullopt;
    return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
    std::vector<std::string_view> parts;
    while (true) {
        const auto at = text.find(separator);
        parts.push_back(text.substr(0, at));
        if (at == std::string_view::npos)
            return parts;
        text.remove_prefix(at + 1);
    }
}

Result<std::uint16_t> parse_port(std::string_view text, std::string_view forward) {
    const auto port = number(text, 65535);
    if (!port || *port == 0)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("port '{}' of '{}' is not one of 1 to 65535", text, forward));
    return static_cast<std::uint16_t>(*port);
}

} // namespace

std::string format_ipv4(Ipv4 address) {
    return fmt::format("{}.{}.{}.{}", address >> 24, address >> 16 & 0xff, address >> 8 & 0xff,
                       address & 0xff);
}

Result<Ipv4> parse_ipv4(std::string_view text) {
    const auto parts = split(text, '.');
    Ipv4 address = 0;
    bool valid = parts.size() == 4;
    for (const auto part : parts) {
        const auto value = number(part, 255);
        valid = valid && value.has_value();
        address = address << 8 | value.value_or(0);
    }
    if (!valid)
        return base::fail(Errc::InvalidArgument, fmt::format("'{}' is not an IPv4 address", text),
                          "write it like 127.0.0.1");
    return address;
}

Result<MacAddress> parse_mac(std::string_view text) {
    MacAddress mac{};
    const auto parts = split(text, ':');
    bool valid = parts.size() == mac.size();
    unsigned all = 0;
    for (std::size_t i = 0; i < mac.size() && valid; ++i) {
        unsigned value = 0;
        const auto* const end = parts[i].data() + parts[i].size();
        const auto [stop, error] = std::from_chars(parts[i].data(), end, value, 16);
        valid = parts[i].size() == 2 && error == std::errc{} && stop == end;
        mac[i] = static_cast<std::uint8_t>(value);
        all |= value;
    }
    if (!valid || all == 0)
        return base::fail(Errc::InvalidArgument, fmt::format("'{}' is not a MAC address", text),
                          "write it like 52:54:00:12:34:56");
    if ((mac[0] & 1) != 0)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("'{}' is the MAC address of a group, not of a card", text),
                          "make the first byte even");
    return mac;
}

Result<Forward> parse_forward(std::string_view text) {
    const auto parts = split(text, ':');
    Forward forward;
    if (parts.size() < 3 || parts.size() > 5)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("'{}' is not PROTOCOL:HOST PORT:GUEST PORT", text),
                          kForwardHint);
    if (parts[0] != "tcp" && parts[0] != "udp")
        return base::fail(Errc::InvalidArgument,
                          fmt::format("protocol '{}' of '{}' is unknown", parts[0], text),
                          "use tcp or udp");
    forward.protocol = parts[0] == "udp" ? Forward::Protocol::Udp : Forward::Protocol::Tcp;
    std::size_t next = 1;
    if (parts.size() > 3)
        forward.host_address = DOPPEL_TRY(parse_ipv4(parts[next++]));
    forward.host_port = DOPPEL_TRY(parse_port(parts[next++], text));
    if (parts.size() > 4)
        forward.guest_address = DOPPEL_TRY(parse_ipv4(parts[next++]));
    forward.guest_port = DOPPEL_TRY(parse_port(parts[next], text));
    return forward;
}

std::string format_forward(const Forward& forward) {
    const auto guest = forward.guest_address == 0 ? "" : format_ipv4(forward.guest_address) + ":";
    return fmt::format("{}:{}:{}:{}{}", forward.protocol == Forward::Protocol::Udp ? "udp" : "tcp",
                       format_ipv4(forward.host_address), forward.host_port, guest,
                       forward.guest_port);
}

Result<Subnet> parse_subnet(std::string_view text) {
    const auto slash = text.find('/');
    const auto address = parse_ipv4(text.substr(0, slash));
    const auto prefix = slash == std::string_view::npos
                            ? 0
                            : number(text.substr(slash + 1), kMaxPrefix).value_or(0);
    if (!address || prefix < kMinPrefix)
        return base::fail(Errc::InvalidArgument, fmt::format("'{}' is not a network", text),
                          fmt::format("write it like 10.0.2.0/24, with a prefix of {} to {} bits",
                                      kMinPrefix, kMaxPrefix));
    Subnet subnet{*address, prefix};
    if ((subnet.base & ~subnet.mask()) != 0)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("'{}' is an address, not a network", text),
                          "write " + format_subnet({subnet.base & subnet.mask(), subnet.prefix}));
    return subnet;
}

std::string format_subnet(const Subnet& subnet) {
    return fmt::format("{}/{}", format_ipv4(subnet.base), subnet.prefix);
}

} // namespace doppel::description
