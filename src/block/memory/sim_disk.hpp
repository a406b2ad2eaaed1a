// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A disk for tests that remembers the order of what happened to it: afterwards it can say what
/// might be on it had the power failed at any moment, and it can fail on request. Owner thread
/// only. The disk outlives the nodes that open it.
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "block/node.hpp"

namespace doppel::block {

class SimDisk {
public:
    static constexpr std::size_t kSectorBytes = 512; // what a power cut does not tear

    /// A protocol node on this disk.
    std::unique_ptr<Node> open();
    /// A disk with these contents and an empty log.
    static std::unique_ptr<SimDisk> with(std::vector<std::byte> bytes);

    const std::vector<std::byte>& bytes() const noexcept { return bytes_; }
    /// Events so far: writes, size changes, flushes.
    std::size_t events() const noexcept { return log_.size(); }
    /// What a power cut after `events` events may leave: everything up to the last flush before,
    /// and of what came after it a random part, sector by sector, in random order.
    std::vector<std::byte> after_power_cut(std::size_t events, std::mt19937& random) const;
    /// Whether event number `index` is a flush.
    bool is_flush(std::size_t index) const { return log_[index].kind == Event::Kind::Flush; }

    /// The operation after `count` more fails with this errno, once.
    void fail_after(std::size_t count, int os_errno);
    /// Takes back fail_after().
    void heal() { fail_in_ = 0; }
    /// No write passes this size: disk full.
    void limit(std::uint64_t bytes) { limit_ = bytes; }

private:
    class SimNode;
    struct Event {
        enum class Kind : std::uint8_t { Write, Resize, Flush } kind;
        std::uint64_t offset = 0; // Resize: the new size
        std::vector<std::byte> bytes;
    };
    /// An error when one is due.
    Result<void> next_operation();
    static void apply(std::vector<std::byte>& bytes, const Event& event);
    static void apply_torn(std::vector<std::byte>& bytes, const Event& event, std::mt19937& random);

    std::vector<std::byte> bytes_;
    std::vector<std::byte> before_; // at the beginning of the log
    std::vector<Event> log_;
    std::uint64_t limit_ = std::uint64_t{1} << 40;
    std::size_t fail_in_ = 0; // 0: never
    int fail_errno_ = 0;
};

} // namespace doppel::block
