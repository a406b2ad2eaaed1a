// SPDX-License-Identifier: Apache-2.0
#include "net/frame_queue.hpp"

#include "net/tcp_segment.hpp"

namespace doppel::net {

bool FrameQueue::push(Frame frame, Merge merge) {
    if (bytes_.size() + frame.size() > kMaxBytes)
        return false;
    if (merge == Merge::Segments && merge_into_last(frame))
        return true;
    if (places_.size() == kMaxFrames)
        return false;
    places_.push_back({bytes_.size(), frame.size()});
    bytes_.insert(bytes_.end(), frame.begin(), frame.end());
    return true;
}

/// As a receiver's offload would: all segments but the last have the same length, and one that
/// pushes is the last.
bool FrameQueue::merge_into_last(Frame frame) {
    if (places_.empty() || places_.back().is_whole)
        return false;
    auto& place = places_.back();
    const auto next = TcpSegment::of(frame);
    const auto last = TcpSegment::of(Frame{bytes_}.subspan(place.offset, place.bytes));
    if (!next || !last || last->is_pushed() || !last->is_continued_by(*next))
        return false;
    const auto data = next->data();
    const std::size_t segment_bytes =
        place.segment_bytes != 0 ? place.segment_bytes : last->data().size();
    if (data.size() > segment_bytes || segment_bytes > UINT16_MAX ||
        place.bytes + data.size() > TcpSegment::kMaxBytes)
        return false;
    bytes_.insert(bytes_.end(), data.begin(), data.end());
    place.bytes += data.size();
    place.segment_bytes = static_cast<std::uint16_t>(segment_bytes);
    place.is_whole = data.size() < segment_bytes || next->is_pushed();
    TcpSegment::rewrite(std::span{bytes_}.subspan(place.offset, place.bytes), next->is_pushed());
    return true;
}

bool FrameQueue::offer(FrameReceiver& receiver) {
    std::vector<Arrival> frames;
    frames.reserve(places_.size());
    for (const auto& place : places_)
        frames.push_back({Frame{bytes_}.subspan(place.offset, place.bytes), place.segment_bytes});
    const auto taken = receiver.receive(frames);
    drop_first(taken);
    return taken != 0;
}

void FrameQueue::clear() {
    places_.clear();
    bytes_.clear();
}

void FrameQueue::drop_first(std::size_t count) {
    if (count == places_.size())
        return clear();
    const auto start = places_[count].offset;
    bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(start));
    places_.erase(places_.begin(), places_.begin() + static_cast<std::ptrdiff_t>(count));
    for (auto& place : places_)
        place.offset -= start;
}

} // namespace doppel::net
