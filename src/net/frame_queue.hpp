// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Frames that wait for their receiver, in one piece of memory that is used again; a TCP segment
/// that goes on where the last frame ends can become a part of it. The owner locks.
#include <vector>

#include "net/backend.hpp"

namespace doppel::net {

class FrameQueue {
public:
    static constexpr std::size_t kMaxFrames = 1024, kMaxBytes = 4u << 20;
    enum class Merge : std::uint8_t { No, Segments };

    bool empty() const { return places_.empty(); }
    /// False: the queue is full, the frame is lost.
    bool push(Frame frame, Merge merge = Merge::No);
    /// Offers all to the receiver and keeps what it did not take; whether it took any.
    bool offer(FrameReceiver& receiver);
    void clear();

private:
    struct Place {
        std::size_t offset;
        std::size_t bytes;
        std::uint16_t segment_bytes = 0; // as of Arrival
        bool is_whole = false;           // nothing is to be added
    };
    bool merge_into_last(Frame frame);
    void drop_first(std::size_t count);

    std::vector<std::byte> bytes_;
    std::vector<Place> places_;
};

} // namespace doppel::net
