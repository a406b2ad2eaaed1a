// SPDX-License-Identifier: Apache-2.0
#include "net/frame_queue.hpp"

#include <doctest/doctest.h>

#include <string>

#include "net/internet_checksum.hpp"
#include "net/tcp_segment.hpp"

using namespace doppel;
using namespace doppel::net;

namespace {

using Bytes = std::vector<std::byte>;

struct Card final : FrameReceiver {
    std::vector<Bytes> got{};
    std::vector<unsigned> segments{};
    std::size_t room = 1'000'000;
    std::size_t receive(std::span<const Arrival> frames) noexcept override {
        const auto count = std::min(room, frames.size());
        room -= count;
        for (const auto& arrival : frames.first(count)) {
            got.emplace_back(arrival.frame.begin(), arrival.frame.end());
            segments.push_back(arrival.segment_bytes);
        }
        return count;
    }
};

/// Data of a connection from its byte `from` on; with right checksums.
Bytes segment(std::uint32_t from, std::size_t bytes, std::uint8_t flags = 0x10) {
    Bytes frame(TcpSegment::kHeaderBytes + bytes);
    for (std::size_t i = 0; i < bytes; ++i)
        frame[TcpSegment::kHeaderBytes + i] = static_cast<std::byte>((from + i) * 7 % 251);
    frame[0] = std::byte{2};
    frame[6] = std::byte{4};
    base::store_be(frame.data() + 12, std::uint16_t{0x0800});
    frame[14] = std::byte{0x45};
    frame[22] = std::byte{64};
    frame[23] = std::byte{6};
    base::store_be(frame.data() + 26, std::uint32_t{0x0a00'0202});
    base::store_be(frame.data() + 30, std::uint32_t{0x0a00'020f});
    base::store_be(frame.data() + 34, std::uint32_t{0x0050'1234});
    base::store_be(frame.data() + 38, from);
    frame[46] = std::byte{0x50};
    frame[47] = static_cast<std::byte>(flags);
    base::store_be(frame.data() + 48, std::uint16_t{8192});
    TcpSegment::rewrite(frame, false); // lengths, IP's checksum, the sum of the pseudo header
    base::store_be(frame.data() + 50, internet_checksum(Frame{frame}.subspan(34)));
    return frame;
}

/// What arrives of them.
Card merged(const std::vector<Bytes>& frames,
            FrameQueue::Merge merge = FrameQueue::Merge::Segments) {
    FrameQueue queue;
    Card card;
    for (const auto& frame : frames)
        REQUIRE(queue.push(frame, merge));
    queue.offer(card);
    return card;
}

} // namespace

TEST_CASE("frame queue: bounded, and what is taken makes room") {
    FrameQueue queue;
    const std::vector<std::byte> frame(100);
    for (std::size_t i = 0; i < FrameQueue::kMaxFrames; ++i)
        REQUIRE(queue.push(frame));
    CHECK(!queue.push(frame));
    Card card;
    card.room = 10;
    CHECK(queue.offer(card));
    CHECK(queue.push(frame));
    CHECK(!queue.offer(card));
    card.room = 2000;
    CHECK(queue.offer(card));
    CHECK(queue.empty());
    CHECK(card.got.size() == FrameQueue::kMaxFrames + 1);
}

TEST_CASE("frame queue: segments that follow each other become one, with its headers") {
    const auto card = merged({segment(1000, 100), segment(1100, 100), segment(1200, 40)});
    REQUIRE(card.got.size() == 1);
    CHECK(card.segments[0] == 100);
    // As if it had been sent whole, but for the checksum of TCP: that is the driver's to complete,
    // from the sum of the pseudo header.
    auto got = card.got[0];
    const auto sum = internet_checksum(Frame{got}.subspan(TcpSegment::kTcpStart));
    base::store_be(got.data() + TcpSegment::kTcpStart + TcpSegment::kChecksumOffset, sum);
    CHECK(got == segment(1000, 240));
    CHECK(internet_checksum(Frame{got}.subspan(14, 20)) == 0);
}

TEST_CASE("frame queue: a shorter segment or a push is the last of its frame") {
    auto card = merged({segment(0, 100), segment(100, 40), segment(140, 40), segment(180, 40)});
    REQUIRE(card.got.size() == 2);
    CHECK(card.got[1].size() == TcpSegment::kHeaderBytes + 80);
    card = merged({segment(0, 100), segment(100, 100, 0x18), segment(200, 100)});
    REQUIRE(card.got.size() == 2);
    CHECK(card.got[0][47] == std::byte{0x18});
    CHECK(card.segments[1] == 0);
    CHECK(card.got[1] == segment(200, 100));
    CHECK(merged({segment(0, 100, 0x18), segment(100, 100)}).got.size() == 2);
    CHECK(merged({segment(0, 40), segment(40, 100)}).got.size() == 2);
}

TEST_CASE("frame queue: what differs in anything else stays apart") {
    const auto apart = [](auto&& change) {
        auto second = segment(100, 100);
        change(second);
        return merged({segment(0, 100), second}).got.size() == 2;
    };
    CHECK_FALSE(apart([](Bytes&) {}));
    CHECK_FALSE(apart([](Bytes& f) { f[19] = std::byte{9}; })); // IP's id
    for (const std::size_t at :
         {0, 6, 13, 14, 15, 17, 20, 22, 23, 26, 33, 34, 37, 41, 45, 46, 48}) {
        CAPTURE(at);
        CHECK(apart([at](Bytes& f) { f[at] ^= std::byte{1}; }));
    }
    CHECK(apart([](Bytes& f) { f.resize(f.size() + 6); }));      // padding
    CHECK(apart([](Bytes& f) { f = segment(0, 100); }));         // repeated
    CHECK(apart([](Bytes& f) { f = segment(100, 0); }));         // an acknowledgement
    CHECK(apart([](Bytes& f) { f = segment(100, 100, 0x11); })); // the end
    CHECK(apart([](Bytes& f) { f.resize(10); }));
    CHECK(merged({segment(0, 100), segment(100, 100)}, FrameQueue::Merge::No).got.size() == 2);
}

TEST_CASE("frame queue: a merged frame ends where IPv4 does, across the end of numbers too") {
    std::vector<Bytes> frames;
    const std::uint32_t start = UINT32_MAX - 5000;
    for (std::uint32_t i = 0; i < 50; ++i)
        frames.push_back(segment(start + i * 1460, 1460));
    const auto card = merged(frames);
    REQUIRE(card.got.size() == 2);
    CHECK(card.got[0].size() == TcpSegment::kHeaderBytes + 44 * 1460);
    CHECK(card.got[1].size() == TcpSegment::kHeaderBytes + 6 * 1460);
}

TEST_CASE("internet checksum: examples that others have computed") {
    const auto sum = [](const std::string& bytes) {
        return internet_checksum(std::as_bytes(std::span{bytes}));
    };
    // RFC 1071 §3: 0001 f203 f4f5 f6f7 add up to ddf2.
    CHECK(sum(std::string("\x00\x01\xf2\x03\xf4\xf5\xf6\xf7", 8)) == 0x220d);
    // A well-known IPv4 header, whose checksum is b861.
    CHECK(sum(std::string("\x45\x00\x00\x73\x00\x00\x40\x00\x40\x11\x00\x00\xc0\xa8\x00\x01\xc0\xa8"
                          "\x00\xc7",
                          20)) == 0xb861);
    CHECK(sum("") == 0xffff);
    CHECK(sum("\x01") == 0xfeff);
    CHECK(sum(std::string("\x01\x02\x03", 3)) == 0xfbfd);
    CHECK(sum(std::string(40, '\xff')) == 0);
}
