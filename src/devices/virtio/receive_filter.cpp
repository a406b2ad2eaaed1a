// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/receive_filter.hpp"

#include <algorithm>

namespace doppel::devices {

namespace {

constexpr std::size_t kMacBytes = std::tuple_size_v<MacAddress>;

bool stands_in(const MacAddress& mac, std::span<const std::uint8_t> table) {
    for (; table.size() >= kMacBytes; table = table.subspan(kMacBytes))
        if (std::ranges::equal(mac, table.first(kMacBytes)))
            return true;
    return false;
}

} // namespace

void ReceiveFilter::set(std::uint8_t mode, bool on) {
    const auto bit = static_cast<std::uint8_t>(1u << mode);
    modes = static_cast<std::uint8_t>(on ? modes | bit : modes & ~bit);
}

bool ReceiveFilter::lets_in(net::Frame frame) const {
    constexpr MacAddress kBroadcast{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    if (frame.size() < kMacBytes)
        return false;
    if (has(Promiscuous))
        return true;
    MacAddress to{};
    for (std::size_t i = 0; i < kMacBytes; ++i)
        to[i] = std::to_integer<std::uint8_t>(frame[i]);
    if (to == kBroadcast)
        return !has(NoBroadcast);
    if ((to[0] & 1) != 0)
        return !has(NoMulticast) &&
               (has(AllMulticast) || multicast_overflows || stands_in(to, multicast));
    return !has(NoUnicast) &&
           (to == mac || has(AllUnicast) || unicast_overflows || stands_in(to, unicast));
}

base::Result<void> ReceiveFilter::validate() const {
    const auto is_table = [](const auto& table) {
        return table.size() % kMacBytes == 0 && table.size() <= kMaxTable * kMacBytes;
    };
    if ((modes >> kModes) != 0 || !is_table(unicast) || !is_table(multicast))
        return base::fail(base::Errc::Corrupt, "receive filter of a network card");
    return {};
}

} // namespace doppel::devices
