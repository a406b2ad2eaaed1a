// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Which frames a network card lets in: its own address, broadcasts, and what the driver asked for
/// by modes and address tables (Virtual I/O Device 1.2 §5.1.6.5.1, §5.1.6.5.2). The owner locks.
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "net/backend.hpp"
#include "state/schema.hpp"

namespace doppel::devices {

using MacAddress = std::array<std::uint8_t, 6>;

struct ReceiveFilter {
    static constexpr std::size_t kMaxTable =
        64; // addresses; a longer table lets all of its kind in

    /// Commands of the class VIRTIO_NET_CTRL_RX, by number: one mode each.
    enum Mode : std::uint8_t {
        Promiscuous,
        AllMulticast,
        AllUnicast,
        NoMulticast,
        NoUnicast,
        NoBroadcast
    };
    static constexpr std::uint8_t kModes = 6;

    MacAddress mac{};
    std::uint8_t modes = 1u << Promiscuous; // until the driver says otherwise
    std::vector<std::uint8_t> unicast{};    // addresses, six bytes each
    std::vector<std::uint8_t> multicast{};
    bool unicast_overflows = false;
    bool multicast_overflows = false;

    static constexpr auto kSchema =
        state::schema("receive-filter", 1, state::field(1, "mac", &ReceiveFilter::mac),
                      state::field(2, "modes", &ReceiveFilter::modes),
                      state::field(3, "unicast", &ReceiveFilter::unicast),
                      state::field(4, "multicast", &ReceiveFilter::multicast),
                      state::field(5, "unicast_overflows", &ReceiveFilter::unicast_overflows),
                      state::field(6, "multicast_overflows", &ReceiveFilter::multicast_overflows));

    bool has(Mode mode) const { return (modes >> mode & 1) != 0; }
    void set(std::uint8_t mode, bool on);
    bool lets_in(net::Frame frame) const;
    base::Result<void> validate() const;
};

} // namespace doppel::devices
