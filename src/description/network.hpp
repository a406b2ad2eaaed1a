// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Networks as people write them in a machine description. Pure data; any thread.
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.hpp"

namespace doppel::description {

/// IPv4 address, host byte order: 10.0.2.15 is 0x0a00'020f.
using Ipv4 = std::uint32_t;

std::string format_ipv4(Ipv4 address);
/// Four decimal numbers with dots. Errors: InvalidArgument.
base::Result<Ipv4> parse_ipv4(std::string_view text);

using MacAddress = std::array<std::uint8_t, 6>;
/// "52:54:00:12:34:56", of one station, not of a group. Errors: InvalidArgument.
base::Result<MacAddress> parse_mac(std::string_view text);

/// A port of the host that leads to one of the guest.
struct Forward {
    enum class Protocol : std::uint8_t { Tcp, Udp };
    Protocol protocol = Protocol::Tcp;
    Ipv4 host_address = 0x7f00'0001; // 127.0.0.1
    std::uint16_t host_port = 0;
    Ipv4 guest_address = 0; // 0: the one that DHCP gives out first
    std::uint16_t guest_port = 0;
};
/// "tcp:2222:22", "tcp:0.0.0.0:2222:22", "udp:127.0.0.1:5353:10.0.2.20:53". Errors:
/// InvalidArgument, naming the part.
base::Result<Forward> parse_forward(std::string_view text);
/// The form that names the host's address.
std::string format_forward(const Forward& forward);

/// The network of a guest.
struct Subnet {
    Ipv4 base = 0x0a00'0200; // 10.0.2.0
    unsigned prefix = 24;    // bits
    Ipv4 mask() const { return ~Ipv4{0} << (32 - prefix); }
    bool contains(Ipv4 address) const { return (address & mask()) == base; }
};
/// "10.0.2.0/24"; prefixes of 8 to 27 bits have room for what is in it. Errors: InvalidArgument.
base::Result<Subnet> parse_subnet(std::string_view text);
std::string format_subnet(const Subnet& subnet);

} // namespace doppel::description
