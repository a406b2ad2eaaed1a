// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The descriptors that somebody who thinks in poll(2) waits for, on an event loop: each round a
/// list of them, of which only what changed goes to the kernel.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <unordered_map>
#include <vector>

#include "base/event_loop.hpp"

namespace doppel::net {

/// The loop's thread only.
class WatchedFds {
public:
    /// `ready` is called when one of them is ready; it may be called often before the next round.
    WatchedFds(base::EventLoop& loop, std::function<void()> ready)
        : loop_{loop}, ready_{std::move(ready)} {}
    ~WatchedFds() { watch_none(); }
    WatchedFds(const WatchedFds&) = delete;
    WatchedFds& operator=(const WatchedFds&) = delete;

    /// A round: begin(), add() for each descriptor, commit(). What is not added is not watched.
    void begin();
    /// Its place in the list. `events`: EPOLLIN and so on.
    std::size_t add(int fd, std::uint32_t events);
    void commit();
    /// What was seen at that place of the last round's list; forgotten by begin().
    std::uint32_t seen(std::size_t place) const;

    /// The descriptor is about to be closed.
    void forget(int fd);
    void watch_none();

private:
    struct Watch {
        std::uint32_t events = 0; // as the kernel has it
        std::uint32_t seen = 0;
        std::uint64_t round = 0; // the last that wanted it
    };
    void tell_kernel(int fd, Watch& watch, std::uint32_t events);

    base::EventLoop& loop_;
    std::function<void()> ready_;
    std::unordered_map<int, Watch> watches_;
    std::vector<int> list_;
    std::uint64_t round_ = 0;
};

} // namespace doppel::net
