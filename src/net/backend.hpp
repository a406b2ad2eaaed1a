// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The host's side of a network card: Ethernet frames in both directions, without preamble and
/// frame check sequence. Nothing here knows what kind of card it is.
#include <cstddef>
#include <cstdint>
#include <span>

namespace doppel::net {

using Frame = std::span<const std::byte>;

/// A frame for the card.
struct Arrival {
    Frame frame{};
    /// Not 0: it stands for several that followed each other, TCP over IPv4 without options, with
    /// so many bytes of data in each but the last. The TCP checksum is that of the pseudo header.
    std::uint16_t segment_bytes = 0;
};

/// The card. Called on the thread of the backend's loop.
class FrameReceiver {
public:
    virtual ~FrameReceiver() = default;
    /// Takes frames, from the first on; how many. The rest is offered again after
    /// receiver_ready(). A frame that the card drops is taken.
    virtual std::size_t receive(std::span<const Arrival> frames) noexcept = 0;
    /// Whether it takes several segments as one frame now. Lock-free; the answer may be outdated by
    /// the time of receive(), which then drops them.
    virtual bool takes_merged_segments() const noexcept { return false; }
};

/// On the thread of the backend's loop, except set_receiver().
class Backend {
public:
    virtual ~Backend() = default;
    /// Before the loop runs; nullptr after it has ended, before the card dies.
    virtual void set_receiver(FrameReceiver* receiver) noexcept = 0;
    /// The receiver, which did not take all, takes frames again. Does not call it on this call's
    /// stack.
    virtual void receiver_ready() noexcept = 0;
    /// What the card sends, checksums complete. Does not call receive() on this call's stack.
    virtual void send(Frame frame) noexcept = 0;
    /// Whether send() takes a TCP segment over IPv4 that fills its datagram (64 KiB), however
    /// small the MTU is.
    virtual bool takes_long_segments() const noexcept { return false; }
    /// Whether the checksums of what the card receives are known to be right, because the frames
    /// were made in this process. Only such frames may be merged.
    virtual bool gives_verified_frames() const noexcept { return false; }
    static constexpr std::size_t kMaxFrameBytes = 14 + 65535;
};

} // namespace doppel::net
