// SPDX-License-Identifier: Apache-2.0
#include "block/filter/throttle_node.hpp"

namespace doppel::block::filter {

Task<void> ThrottleNode::admit(Direction direction, std::uint64_t bytes) {
    auto& line = lines_[static_cast<std::size_t>(direction)];
    auto wait = line.turn.lock();
    auto guard = co_await wait;
    while (true) {
        const auto time = group_.admit(direction, bytes, std::chrono::steady_clock::now());
        if (time.count() == 0)
            co_return {};
        const Sleep sleep{&line, time};
        co_await sleep;
    }
}

Task<void> ThrottleNode::read(std::uint64_t offset, IoBuffer into) {
    DOPPEL_AWAIT_VOID(admit(Direction::Read, into.size()));
    DOPPEL_AWAIT_VOID(below().read(offset, into));
    co_return {};
}

Task<void> ThrottleNode::write(std::uint64_t offset, IoBuffer from, Durability durability) {
    DOPPEL_AWAIT_VOID(admit(Direction::Write, from.size()));
    DOPPEL_AWAIT_VOID(below().write(offset, from, durability));
    co_return {};
}

Task<void> ThrottleNode::write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                                      Durability durability) {
    DOPPEL_AWAIT_VOID(admit(Direction::Write, length));
    DOPPEL_AWAIT_VOID(below().write_zeroes(offset, length, unmap, durability));
    co_return {};
}

Task<void> ThrottleNode::discard(std::uint64_t offset, std::uint64_t length) {
    DOPPEL_AWAIT_VOID(admit(Direction::Write, length));
    DOPPEL_AWAIT_VOID(below().discard(offset, length));
    co_return {};
}

} // namespace doppel::block::filter
