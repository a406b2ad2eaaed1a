// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Device side of a split virtqueue (Virtual I/O Device 1.2 §2.7): takes descriptor chains that the
/// driver made available, gives them back used, and says when the driver wants to hear of it.
///
/// The driver is an adversary: every field is read once, chains are checked for loops, order,
/// length and place before a device sees them. What is wrong breaks the queue: from then on it
/// gives nothing, and broken() says why.
///
/// Modelled: indirect descriptors (§2.7.5.3), event index (§2.7.7, §2.7.10).
/// Not modelled: packed virtqueues, VIRTIO_F_IN_ORDER.
/// The owner locks.
#include <cstdint>
#include <span>
#include <vector>

#include "memory/guest_ranges.hpp"
#include "state/schema.hpp"

namespace doppel::devices {

/// One buffer of the driver: parts to read, then parts to write. Good until it is pushed back.
struct DescriptorChain {
    std::uint16_t head = 0;
    std::vector<memory::GuestRange> ranges{};
    std::size_t readable_count = 0; // of the ranges; the rest is for writing

    std::span<const memory::GuestRange> readable() const {
        return std::span{ranges}.first(readable_count);
    }
    std::span<const memory::GuestRange> writable() const {
        return std::span{ranges}.subspan(readable_count);
    }
};

class Virtqueue {
public:
    static constexpr std::uint16_t kNoVector = 0xffff; // VIRTIO_MSI_NO_VECTOR
    /// A chain may have as many descriptors as the queue, and at least this many: Linux does not
    /// count those of an indirect table.
    static constexpr std::size_t kMinChainLimit = 1024;

    /// Registers (§4.1.4.3) and progress.
    struct State {
        std::uint16_t size = 0; // power of two
        std::uint16_t vector = kNoVector;
        bool enabled = false;
        std::uint64_t descriptors = 0; // GPAs
        std::uint64_t available = 0;
        std::uint64_t used = 0;
        std::uint16_t next_available = 0; // index of the next chain to take
        std::uint16_t next_used = 0;      // our index in the used ring
        std::uint16_t signalled = 0;      // next_used when we last thought of an interrupt
        static constexpr auto kSchema = state::schema(
            "virtqueue", 1, state::field(1, "size", &State::size),
            state::field(2, "vector", &State::vector), state::field(3, "enabled", &State::enabled),
            state::field(4, "descriptors", &State::descriptors),
            state::field(5, "available", &State::available), state::field(6, "used", &State::used),
            state::field(7, "next_available", &State::next_available),
            state::field(8, "next_used", &State::next_used),
            state::field(9, "signalled", &State::signalled));
    };

    Virtqueue(memory::GuestMemory& memory, std::uint16_t max_size)
        : memory_{&memory}, max_size_{max_size} {
        reset();
    }

    std::uint16_t max_size() const { return max_size_; }
    State& state() { return state_; }
    const State& state() const { return state_; }
    void reset();
    /// The driver has enabled the queue; what it chose is checked now.
    void start(bool event_index);
    base::Result<void> check(const State& state) const;
    void load(const State& state, bool event_index);

    bool is_running() const { return state_.enabled && broken_ == nullptr; }
    /// What the driver did wrong, or nullptr.
    const char* broken() const { return broken_; }
    void set_broken(const char* why) {
        if (broken_ == nullptr)
            broken_ = why;
    }

    /// Takes the next chain into `chain`, whose storage is reused; false when there is none.
    bool pop(DescriptorChain& chain);
    /// Whether pop() would give one.
    bool has_available();
    /// Makes the last `count` chains that pop() gave available again.
    void unpop(std::uint16_t count);
    /// Gives a chain back, of which the first `written` bytes of the writable part are new. The
    /// driver sees it after the next publish().
    void push(std::uint16_t head, std::uint32_t written);
    /// Makes what was pushed visible; true when the driver wants an interrupt for it.
    bool publish();
    /// Chains taken and not yet given back.
    std::uint32_t outstanding() const { return outstanding_; }

    /// Asks the driver to notify us again (or no longer, which is advice); true when chains have
    /// become available meanwhile.
    bool enable_notifications();
    void disable_notifications();

private:
    struct Descriptor;
    struct Table;
    bool add_ranges(Table table, std::uint16_t index, DescriptorChain& chain);
    bool add_range(const Descriptor& descriptor, DescriptorChain& chain, std::uint64_t& total);
    template <typename T> T load(std::uint64_t at);
    template <typename T> void store(std::uint64_t at, T value);
    std::uint64_t avail_ring(std::uint16_t index) const;
    std::uint64_t used_ring(std::uint16_t index) const;
    bool fail(const char* why) {
        set_broken(why);
        return false;
    }

    memory::GuestMemory* memory_; // owned by the Machine, outlives the devices
    std::uint16_t max_size_;
    State state_;
    bool event_index_ = false;
    const char* broken_ = nullptr;
    std::uint16_t seen_available_ = 0; // the driver's index as last read
    std::uint16_t published_ = 0;      // our index as last written
    bool signalled_is_valid_ = false;
    std::uint32_t outstanding_ = 0;
};

} // namespace doppel::devices
