// SPDX-License-Identifier: Apache-2.0
#pragma once
/// An open image as a device sees it: requests with completion callbacks, bounds checked, and a
/// drain that leaves nothing in flight.
///
/// Owner thread only (the loop's). Buffers and the memory behind them stay valid until the
/// completion, which may run inside the call that submits. Requests may complete in any order.
#include <deque>
#include <functional>
#include <memory>

#include "block/node.hpp"

namespace doppel::block {

class Drive {
public:
    using Done = std::function<void(Result<void>)>;

    explicit Drive(std::unique_ptr<Node> node) : node_{std::move(node)} {}
    ~Drive();
    Drive(const Drive&) = delete;
    Drive& operator=(const Drive&) = delete;

    std::uint64_t size() const { return node_->size(); }
    bool read_only() const { return node_->read_only(); }
    Limits limits() const { return node_->limits(); }
    Node& node() noexcept { return *node_; }

    /// Errors of all: OutOfRange past the end, PermissionDenied for writes of a read-only image,
    /// what the host says.
    void read(std::uint64_t offset, IoBuffer into, Done done);
    void write(std::uint64_t offset, IoBuffer from, Durability durability, Done done);
    void write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                      Durability durability, Done done);
    void discard(std::uint64_t offset, std::uint64_t length, Done done);
    /// What completed before is on stable storage when `done` runs.
    void flush(Done done);

    /// Holds back what is submitted from now on, and calls `drained` once no request is in flight:
    /// then the image and the guest's memory are still until resume(). Does not flush.
    void drain(std::function<void()> drained);
    /// Submits what was held back, in order.
    void resume();
    std::size_t in_flight() const noexcept { return in_flight_; }

    /// After drain(): writes back metadata and marks the image clean. Nothing may follow.
    Task<void> close() { return node_->close(); }

private:
    enum class Direction : std::uint8_t { Read, Write };
    Result<void> check(std::uint64_t offset, std::uint64_t length, Direction direction) const;
    /// Starts the request now, or later when drained.
    void submit(std::function<Task<void>()> start, Done done);
    void finish(const Done& done, Result<void> result);

    std::unique_ptr<Node> node_;
    std::size_t in_flight_ = 0;
    bool held_ = false;
    struct Held {
        std::function<Task<void>()> start;
        Done done;
    };
    std::deque<Held> waiting_;
    std::function<void()> drained_;
};

} // namespace doppel::block
