// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Frames that wait for their receiver, in one piece of memory that is used again. The owner locks.
#include <utility>
#include <vector>

#include "net/backend.hpp"

namespace doppel::net {

class FrameQueue {
public:
    static constexpr std::size_t kMaxFrames = 1024, kMaxBytes = 4u << 20;

    bool empty() const { return places_.empty(); }
    /// False: the queue is full, the frame is lost.
    bool push(Frame frame) {
        if (places_.size() == kMaxFrames || bytes_.size() + frame.size() > kMaxBytes)
            return false;
        places_.emplace_back(bytes_.size(), frame.size());
        bytes_.insert(bytes_.end(), frame.begin(), frame.end());
        return true;
    }
    /// Offers all to the receiver and keeps what it did not take; whether it took any.
    bool offer(FrameReceiver& receiver) {
        std::vector<Frame> frames;
        frames.reserve(places_.size());
        for (const auto& [offset, bytes] : places_)
            frames.push_back(Frame{bytes_}.subspan(offset, bytes));
        const auto taken = receiver.receive(frames);
        drop_first(taken);
        return taken != 0;
    }
    void clear() {
        places_.clear();
        bytes_.clear();
    }

private:
    void drop_first(std::size_t count) {
        if (count == places_.size())
            return clear();
        const auto start = places_[count].first;
        bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(start));
        places_.erase(places_.begin(), places_.begin() + static_cast<std::ptrdiff_t>(count));
        for (auto& place : places_)
            place.first -= start;
    }

    std::vector<std::byte> bytes_;
    std::vector<std::pair<std::size_t, std::size_t>> places_; // offset and size of each frame
};

} // namespace doppel::net
