// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Holds reads and writes back as a group's limits say, each direction in order. Owner thread only.
#include "block/async_lock.hpp"
#include "block/filter/filter_node.hpp"
#include "block/filter/throttle_group.hpp"
#include "block/io/alarm.hpp"

namespace doppel::block::filter {

class ThrottleNode final : public FilterNode {
public:
    /// `group` outlives this.
    ThrottleNode(IoContext& context, std::unique_ptr<ImageNode> below, ThrottleGroup& group)
        : FilterNode{std::move(below)}, group_{group}, lines_{Line{context}, Line{context}} {}

    std::string driver() const override { return "throttle"; }
    Task<void> read(std::uint64_t offset, IoBuffer into) override;
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override;
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override;
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override;

private:
    struct Line { // of one direction: the first asks the group, the others wait behind it
        explicit Line(IoContext& context)
            : turn{context},
              alarm{context.loop(), [this] { std::exchange(sleeper, {}).resume(); }} {}
        AsyncMutex turn;
        std::coroutine_handle<> sleeper;
        Alarm alarm;
    };
    struct Sleep {
        Line* line;
        std::chrono::nanoseconds time;
        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<> waiter) const {
            line->sleeper = waiter;
            line->alarm.set(time);
        }
        void await_resume() const noexcept {}
    };
    Task<void> admit(Direction direction, std::uint64_t bytes);

    ThrottleGroup& group_;
    std::array<Line, 2> lines_;
};

} // namespace doppel::block::filter
