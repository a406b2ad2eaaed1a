// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/virtqueue.hpp"

#include <algorithm>
#include <atomic>
#include <bit>

namespace doppel::devices {

namespace {

// Layout (§2.7.5, §2.7.6, §2.7.8), all little-endian as are our hosts.
constexpr std::uint64_t kDescriptorBytes = 16;
constexpr std::uint64_t kRingFlags = 0, kRingIndex = 2, kRingEntries = 4;
constexpr std::uint64_t kUsedEntryBytes = 8;
constexpr std::uint16_t VIRTQ_DESC_F_NEXT = 1, VIRTQ_DESC_F_WRITE = 2, VIRTQ_DESC_F_INDIRECT = 4;
constexpr std::uint16_t VIRTQ_AVAIL_F_NO_INTERRUPT = 1, VIRTQ_USED_F_NO_NOTIFY = 1;
constexpr std::uint64_t kMaxChainBytes = UINT32_MAX; // §2.7.4: the sum shall stay below 2^32

struct UsedElement {
    std::uint32_t id;
    std::uint32_t length;
};

/// §2.7.10.1: whether going from `old` to `now` passes `event`.
bool passes(std::uint16_t event, std::uint16_t now, std::uint16_t old) {
    return static_cast<std::uint16_t>(now - event - 1) < static_cast<std::uint16_t>(now - old);
}

} // namespace

struct Virtqueue::Descriptor {
    std::uint64_t gpa;
    std::uint32_t bytes;
    std::uint16_t flags;
    std::uint16_t next;
};

/// The queue's own descriptors or an indirect table of them.
struct Virtqueue::Table {
    std::uint64_t at;
    std::uint32_t count;
    bool is_indirect;
};

template <typename T> T Virtqueue::load(std::uint64_t at) {
    const auto value = memory_->load<T>({at});
    if (!value)
        set_broken("a ring outside of memory");
    return value.value_or(T{});
}

template <typename T> void Virtqueue::store(std::uint64_t at, T value) {
    if (!memory_->store<T>({at}, value))
        set_broken("a ring outside of memory");
}

std::uint64_t Virtqueue::avail_ring(std::uint16_t index) const {
    return state_.available + kRingEntries + std::uint64_t{2} * (index & (state_.size - 1u));
}

std::uint64_t Virtqueue::used_ring(std::uint16_t index) const {
    return state_.used + kRingEntries + kUsedEntryBytes * (index & (state_.size - 1u));
}

void Virtqueue::reset() {
    state_ = {};
    state_.size = max_size_;
    event_index_ = signalled_is_valid_ = false;
    broken_ = nullptr;
    seen_available_ = published_ = 0;
    outstanding_ = 0;
}

void Virtqueue::start(bool event_index) {
    event_index_ = event_index;
    state_.enabled = true;
    const std::uint64_t n = state_.size;
    if (!std::has_single_bit(state_.size) || state_.size > max_size_)
        set_broken("a ring of impossible size");
    else if (state_.descriptors % 16 != 0 || state_.available % 2 != 0 || state_.used % 4 != 0)
        set_broken("a ring is not aligned"); // §2.7
    else if (!memory_->contains({state_.descriptors}, n * kDescriptorBytes) ||
             !memory_->contains({state_.available}, kRingEntries + n * 2 + 2) ||
             !memory_->contains({state_.used}, kRingEntries + n * kUsedEntryBytes + 2))
        set_broken("a ring outside of memory");
}

base::Result<void> Virtqueue::check(const State& state) const {
    if (!std::has_single_bit(state.size) || state.size > max_size_)
        return base::fail(base::Errc::Corrupt, "size of a virtqueue");
    return {};
}

void Virtqueue::load(const State& state, bool event_index) {
    reset();
    state_ = state;
    seen_available_ = state.next_available;
    published_ = state.next_used;
    signalled_is_valid_ = true;
    if (state.enabled)
        start(event_index);
}

bool Virtqueue::has_available() {
    if (!is_running())
        return false;
    if (seen_available_ != state_.next_available)
        return true;
    seen_available_ = load<std::uint16_t>(state_.available + kRingIndex);
    // With the driver's release of its index: ring entries and descriptors are read after it.
    std::atomic_thread_fence(std::memory_order_acquire);
    const auto count = static_cast<std::uint16_t>(seen_available_ - state_.next_available);
    if (count > state_.size)
        return fail("the available index has overtaken the ring");
    return count != 0 && is_running();
}

bool Virtqueue::pop(DescriptorChain& chain) {
    if (!has_available())
        return false;
    chain.ranges.clear();
    chain.readable_count = 0;
    chain.head = load<std::uint16_t>(avail_ring(state_.next_available));
    if (!add_ranges({state_.descriptors, state_.size, false}, chain.head, chain))
        return false;
    ++state_.next_available;
    ++outstanding_;
    return true;
}

/// Follows the chain from `index`; an indirect table is always the end of it (§2.7.5.3.1).
bool Virtqueue::add_ranges(Table table, std::uint16_t index, DescriptorChain& chain) {
    const std::size_t limit = std::max<std::size_t>(state_.size, kMinChainLimit);
    std::uint64_t total = 0;
    for (std::size_t count = 0; count < limit; ++count) {
        if (index >= table.count)
            return fail("a descriptor that does not exist");
        const auto descriptor = load<Descriptor>(table.at + index * kDescriptorBytes);
        if (broken_ != nullptr)
            return false;
        if ((descriptor.flags & VIRTQ_DESC_F_INDIRECT) != 0) {
            const auto entries = descriptor.bytes / kDescriptorBytes;
            if (table.is_indirect || (descriptor.flags & VIRTQ_DESC_F_NEXT) != 0 || entries == 0 ||
                descriptor.bytes % kDescriptorBytes != 0 || entries > limit ||
                !memory_->contains({descriptor.gpa}, descriptor.bytes))
                return fail("an indirect descriptor table that cannot be");
            table = {descriptor.gpa, static_cast<std::uint32_t>(entries), true};
            index = 0;
            continue;
        }
        if (!add_range(descriptor, chain, total))
            return false;
        if ((descriptor.flags & VIRTQ_DESC_F_NEXT) == 0)
            return true;
        index = descriptor.next;
    }
    return fail("a descriptor chain without end");
}

bool Virtqueue::add_range(const Descriptor& descriptor, DescriptorChain& chain,
                          std::uint64_t& total) {
    const bool is_writable = (descriptor.flags & VIRTQ_DESC_F_WRITE) != 0;
    total += descriptor.bytes;
    if (total > kMaxChainBytes)
        return fail("a descriptor chain of more than 4 GiB");
    if (!memory_->contains({descriptor.gpa}, descriptor.bytes))
        return fail("a buffer outside of memory");
    if (!is_writable && chain.readable_count != chain.ranges.size())
        return fail("a readable descriptor behind a writable one"); // §2.7.4.2
    chain.ranges.push_back({{descriptor.gpa}, descriptor.bytes});
    chain.readable_count += !is_writable;
    return true;
}

void Virtqueue::unpop(std::uint16_t count) {
    state_.next_available = static_cast<std::uint16_t>(state_.next_available - count);
    outstanding_ -= count;
}

void Virtqueue::push(std::uint16_t head, std::uint32_t written) {
    --outstanding_;
    if (!is_running())
        return;
    store(used_ring(state_.next_used), UsedElement{head, written});
    ++state_.next_used;
}

bool Virtqueue::publish() {
    if (state_.next_used == published_ || !is_running())
        return false;
    std::atomic_thread_fence(std::memory_order_release);
    store(state_.used + kRingIndex, state_.next_used);
    published_ = state_.next_used;
    // The index before the driver's wish is read (§2.7.7.1): else both sides may wait.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const auto old = std::exchange(state_.signalled, state_.next_used);
    const bool is_first = !std::exchange(signalled_is_valid_, true);
    if (event_index_) {
        const auto event =
            load<std::uint16_t>(state_.available + kRingEntries + std::uint64_t{2} * state_.size);
        return is_first || passes(event, state_.next_used, old);
    }
    const auto flags = load<std::uint16_t>(state_.available + kRingFlags);
    return (flags & VIRTQ_AVAIL_F_NO_INTERRUPT) == 0;
}

bool Virtqueue::enable_notifications() {
    if (!is_running())
        return false;
    if (event_index_)
        store(used_ring(0) + kUsedEntryBytes * state_.size, state_.next_available);
    else
        store(state_.used + kRingFlags, std::uint16_t{0});
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return has_available();
}

/// With the event index nothing needs to be done: the driver notifies only when it passes it.
void Virtqueue::disable_notifications() {
    if (is_running() && !event_index_)
        store(state_.used + kRingFlags, VIRTQ_USED_F_NO_NOTIFY);
}

} // namespace doppel::devices
