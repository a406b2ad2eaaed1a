// SPDX-License-Identifier: Apache-2.0
#include "net/user/watched_fds.hpp"

#include "base/log.hpp"

namespace doppel::net {

void WatchedFds::begin() {
    ++round_;
    list_.clear();
    for (auto& [fd, watch] : watches_)
        watch.seen = 0;
}

std::size_t WatchedFds::add(int fd, std::uint32_t events) {
    auto& watch = watches_[fd];
    watch.round = round_;
    if (watch.events != events)
        tell_kernel(fd, watch, events);
    list_.push_back(fd);
    return list_.size() - 1;
}

void WatchedFds::commit() {
    for (auto at = watches_.begin(); at != watches_.end();) {
        if (at->second.round == round_) {
            ++at;
            continue;
        }
        loop_.remove(at->first);
        at = watches_.erase(at);
    }
}

std::uint32_t WatchedFds::seen(std::size_t place) const {
    const auto found = place < list_.size() ? watches_.find(list_[place]) : watches_.end();
    return found == watches_.end() ? 0 : found->second.seen;
}

void WatchedFds::forget(int fd) {
    if (watches_.erase(fd) != 0)
        loop_.remove(fd);
}

void WatchedFds::watch_none() {
    begin();
    commit();
}

/// A descriptor that was closed behind our back is gone from the kernel's list: it is added again.
void WatchedFds::tell_kernel(int fd, Watch& watch, std::uint32_t events) {
    if (watch.events != 0 && loop_.modify(fd, events)) {
        watch.events = events;
        return;
    }
    loop_.remove(fd);
    const auto added = loop_.add(fd, events, [this, fd](std::uint32_t seen) {
        if (const auto found = watches_.find(fd); found != watches_.end()) {
            found->second.seen |= seen;
            ready_();
        }
    });
    watch.events = added ? events : 0;
    if (!added)
        base::log_warning("user network: {}", added.error().message());
}

} // namespace doppel::net
