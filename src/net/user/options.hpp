// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What a user-mode network looks like.
#include <cstdint>
#include <string>
#include <vector>

namespace doppel::net {

/// IPv4 address, host byte order: 10.0.2.15 is 0x0a00'020f.
using Ipv4 = std::uint32_t;

/// A port of the host that leads to one of the guest.
struct Forward {
    enum class Protocol : std::uint8_t { Tcp, Udp };
    Protocol protocol = Protocol::Tcp;
    Ipv4 host_address = 0;
    std::uint16_t host_port = 0;
    Ipv4 guest_address = 0; // 0: the one that DHCP gives out first
    std::uint16_t guest_port = 0;
};

/// In the guest's network the host is address number 2, the name server number 3; DHCP gives out
/// number 15 and the next 15.
struct UserOptions {
    Ipv4 network = 0x0a00'0200; // 10.0.2.0
    Ipv4 mask = 0xffff'ff00;
    std::vector<Forward> forwards;
    std::string hostname; // that DHCP gives the guest; none when empty
    std::uint16_t mtu = 1500;
    bool has_ipv6 = true;    // prefix fec0::/64
    bool restricted = false; // the guest reaches nothing; connections from outside reach it
};

} // namespace doppel::net
