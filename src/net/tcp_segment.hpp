// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A frame seen as one segment of a TCP connection over IPv4, as far as merging segments asks: no
/// options in either header, no fragment, nothing but data, ACK and PSH.
///
///     Ethernet   0 destination   6 source   12 type
///     IPv4      14 version, length   15 service   16 total   18 id   20 fragment   22 TTL
///               23 protocol   24 checksum   26 source   30 destination
///     TCP       34 ports   38 sequence   42 acknowledged   46 length   47 flags   48 window
///               50 checksum   52 urgent   54 data
#include <algorithm>
#include <array>
#include <optional>

#include "net/internet_checksum.hpp"

namespace doppel::net {

class TcpSegment {
public:
    static constexpr std::size_t kHeaderBytes = 54;
    static constexpr std::size_t kMaxBytes = 14 + 65535;
    static constexpr std::uint16_t kTcpStart = 34, kChecksumOffset = 16; // the latter within TCP

    /// Nothing when it is not one.
    static std::optional<TcpSegment> of(std::span<const std::byte> frame) {
        constexpr std::uint8_t kAck = 0x10, kPush = 0x08;
        if (frame.size() <= kHeaderBytes || frame.size() > kMaxBytes)
            return std::nullopt;
        const TcpSegment segment{frame};
        const bool fits = segment.half(12) == 0x0800 && segment.byte(14) == 0x45 &&
                          segment.half(16) == frame.size() - 14 &&
                          (segment.half(20) & 0x3fff) == 0 && segment.byte(23) == 6 &&
                          segment.byte(46) == 0x50 && (segment.byte(47) & ~kPush) == kAck;
        return fits ? std::optional{segment} : std::nullopt;
    }

    std::span<const std::byte> data() const { return frame_.subspan(kHeaderBytes); }
    bool is_pushed() const { return (byte(47) & 0x08) != 0; }

    /// Whether `next` goes on where this ends, and differs in nothing else that counts.
    bool is_continued_by(const TcpSegment& next) const {
        constexpr std::array<std::pair<std::size_t, std::size_t>, 4> kEqual{{
            {0, 16},  // up to the service
            {20, 24}, // fragment bits, TTL, protocol
            {26, 38}, // addresses, ports
            {42, 46}, // acknowledged
        }};
        for (const auto& [from, to] : kEqual)
            if (!std::ranges::equal(frame_.subspan(from, to - from),
                                    next.frame_.subspan(from, to - from)))
                return false;
        const auto end = static_cast<std::uint32_t>(word(38) + data().size()); // modulo 2^32
        return half(48) == next.half(48) && end == next.word(38);
    }

    /// Makes the headers of a frame, to which data was appended, those of the whole.
    static void rewrite(std::span<std::byte> frame, bool push) {
        auto* const at = frame.data();
        base::store_be(at + 16, static_cast<std::uint16_t>(frame.size() - 14));
        base::store_be(at + 24, std::uint16_t{0});
        base::store_be(at + 24, internet_checksum(frame.subspan(14, 20)));
        if (push)
            at[47] |= std::byte{0x08};
        // The pseudo header (RFC 9293 §3.1): addresses, protocol, length.
        std::array<std::byte, 12> pseudo{};
        std::ranges::copy(frame.subspan(26, 8), pseudo.begin());
        pseudo[9] = std::byte{6};
        base::store_be(pseudo.data() + 10, static_cast<std::uint16_t>(frame.size() - 34));
        base::store_be(at + 50, internet_sum(pseudo));
    }

private:
    explicit TcpSegment(std::span<const std::byte> frame) : frame_{frame} {}
    std::uint8_t byte(std::size_t at) const { return std::to_integer<std::uint8_t>(frame_[at]); }
    std::uint16_t half(std::size_t at) const {
        return base::load_be<std::uint16_t>(frame_.data() + at);
    }
    std::uint32_t word(std::size_t at) const {
        return base::load_be<std::uint32_t>(frame_.data() + at);
    }

    std::span<const std::byte> frame_;
};

} // namespace doppel::net
