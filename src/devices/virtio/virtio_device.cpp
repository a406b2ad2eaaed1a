// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/virtio_device.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <bit>
#include <cerrno>

#include "base/bytes.hpp"
#include "base/log.hpp"
#include "base/verify.hpp"

namespace doppel::devices {

namespace {

constexpr std::uint64_t kCommonFeatures =
    VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;
/// What a driver may write to the status register.
constexpr std::uint8_t kDriverStatus = VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER |
                                       VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_FEATURES_OK |
                                       VIRTIO_STATUS_FAILED;

} // namespace

VirtioDevice::VirtioDevice(VirtioTraits traits, memory::GuestMemory& memory,
                           base::EventLoop& worker)
    : traits_{std::move(traits)}, memory_{memory}, worker_{worker} {
    DOPPEL_VERIFY(queue_count() <= kMaxQueues, "queues of one virtio device");
    for (const auto size : traits_.queue_sizes) {
        DOPPEL_VERIFY(std::has_single_bit(size), "a virtqueue's size is a power of two");
        queues_.emplace_back(memory, size);
    }
    poll_number_ = worker_.add_poll([this] { return tell_news(); });
}

VirtioDevice::~VirtioDevice() {
    for (const auto& doorbell : doorbells_)
        worker_.remove(doorbell.get());
    worker_.remove_poll(poll_number_);
}

// --- registers --------------------------------------------------------------------------------

std::uint64_t VirtioDevice::offered_features() const { return traits_.features | kCommonFeatures; }

std::uint64_t VirtioDevice::driver_features() const {
    const base::MutexLock lock{lock_};
    return state_.driver_features;
}

void VirtioDevice::set_driver_features(unsigned word, std::uint32_t value) {
    const base::MutexLock lock{lock_};
    if (word > 1 || (state_.status & VIRTIO_STATUS_FEATURES_OK) != 0)
        return; // §3.1.1: not after step 5
    const auto kept = state_.driver_features & ~(0xffff'ffffull << word * 32);
    state_.driver_features = kept | std::uint64_t{value} << word * 32;
}

std::uint8_t VirtioDevice::status() const {
    const base::MutexLock lock{lock_};
    return state_.status;
}

void VirtioDevice::set_status(std::uint8_t value) {
    if (value == 0)
        return reset();
    const base::MutexLock lock{lock_};
    const auto old = state_.status;
    auto now = static_cast<std::uint8_t>(old | (value & kDriverStatus)); // bits never go, §2.1.1
    if ((now & ~old & VIRTIO_STATUS_FEATURES_OK) != 0 &&
        ((state_.driver_features & ~offered_features()) != 0 || !has_feature(VIRTIO_F_VERSION_1)))
        now &= static_cast<std::uint8_t>(~VIRTIO_STATUS_FEATURES_OK); // §2.2.2: refused
    state_.status = now;
    if ((now & ~old & VIRTIO_STATUS_DRIVER_OK) == 0)
        return;
    if ((now & VIRTIO_STATUS_FEATURES_OK) == 0)
        driver_failed("it did not agree on features");
    else
        driver_is_ready();
}

void VirtioDevice::driver_is_ready() {
    driver_ready(state_.driver_features);
    notify_all(); // what was made available before
}

std::uint8_t VirtioDevice::config_generation() const {
    const base::MutexLock lock{lock_};
    return state_.generation;
}

Virtqueue::State VirtioDevice::queue(unsigned index) const {
    const base::MutexLock lock{lock_};
    return queues_[index].state();
}

void VirtioDevice::set_queue(unsigned index, const Virtqueue::State& wanted) {
    const base::MutexLock lock{lock_};
    auto& queue = queues_[index];
    auto& state = queue.state();
    state.vector = wanted.vector;
    if (state.enabled)
        return;
    if (std::has_single_bit(wanted.size) && wanted.size <= queue.max_size())
        state.size = wanted.size;
    state.descriptors = wanted.descriptors;
    state.available = wanted.available;
    state.used = wanted.used;
    if (wanted.enabled)
        queue.start(has_event_index());
}

std::uint64_t VirtioDevice::read_config(std::uint32_t offset, std::uint8_t size) const {
    const base::MutexLock lock{lock_};
    std::vector<std::byte> bytes;
    config_bytes(bytes);
    bytes.resize(std::max<std::size_t>(bytes.size(), std::size_t{offset} + 8));
    return base::load_le<std::uint64_t>(bytes.data() + offset) &
           (size >= 8 ? ~0ull : (1ull << size * 8) - 1);
}

void VirtioDevice::write_config(std::uint32_t offset, std::uint8_t size, std::uint64_t value) {
    const base::MutexLock lock{lock_};
    config_written(offset, size, value);
}

// --- work -------------------------------------------------------------------------------------

void VirtioDevice::notify(unsigned index) {
    if (index < queue_count() && kicked_.fetch_or(1ull << index) == 0)
        worker_.post([this] { serve(); });
}

void VirtioDevice::notify_all() {
    for (unsigned i = 0; i < queue_count(); ++i)
        notify(i);
}

base::Result<std::vector<int>> VirtioDevice::open_doorbells() {
    std::vector<int> all;
    for (unsigned i = 0; i < queue_count(); ++i) {
        base::UniqueFd doorbell{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
        if (!doorbell)
            return base::fail_errno(errno, "eventfd of a virtqueue");
        DOPPEL_TRY_VOID(worker_.add(doorbell.get(), EPOLLIN, [this, i](auto) { rung(i); }));
        all.push_back(doorbell.get());
        doorbells_.push_back(std::move(doorbell));
    }
    return all;
}

/// On the worker already, so nothing is posted.
void VirtioDevice::rung(unsigned index) {
    eventfd_t count = 0;
    eventfd_read(doorbells_[index].get(), &count); // the number of rings tells nothing
    kicked_.fetch_or(1ull << index);
    serve();
}

bool VirtioDevice::is_active() const {
    return holds_ == 0 && transport_ != nullptr && transport_->may_use_memory() &&
           (state_.status & (VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_NEEDS_RESET)) ==
               VIRTIO_STATUS_DRIVER_OK;
}

/// A notification that comes while the device is not active is forgotten: resume() and DRIVER_OK
/// look at every queue.
void VirtioDevice::serve() {
    const base::MutexLock lock{lock_};
    for (auto kicked = kicked_.exchange(0); kicked != 0 && is_active(); kicked &= kicked - 1) {
        const auto index = static_cast<unsigned>(std::countr_zero(kicked));
        auto& queue = queues_[index];
        queue.disable_notifications();
        if (serve_queue(index) == Serve::WantsMore && queue.enable_notifications())
            notify(index);
    }
    finish_turn();
}

/// Before the worker's loop waits.
bool VirtioDevice::tell_news() {
    if (!has_news_.exchange(false, std::memory_order_relaxed))
        return false;
    const base::MutexLock lock{lock_};
    finish_turn();
    return false;
}

/// Shows the driver what was done, and whoever waits that all is done.
void VirtioDevice::finish_turn() {
    std::uint32_t outstanding = 0;
    for (auto& queue : queues_) {
        if (queue.publish() && transport_ != nullptr)
            transport_->interrupt(VirtioTransport::Cause::Queue, queue.state().vector);
        if (queue.broken() != nullptr)
            driver_failed(queue.broken());
        outstanding += queue.outstanding();
    }
    if (holds_ != 0 && outstanding == 0)
        drained_.notify_all();
}

void VirtioDevice::driver_failed(const char* why) {
    if ((state_.status & VIRTIO_STATUS_NEEDS_RESET) != 0)
        return;
    static base::RateLimit limit{10};
    if (limit.allow())
        base::log_warning("{}: the guest's driver broke the rules: {}", traits_.name, why);
    state_.status |= VIRTIO_STATUS_NEEDS_RESET;
    if ((state_.status & VIRTIO_STATUS_DRIVER_OK) != 0)
        config_changed();
}

void VirtioDevice::config_changed() {
    ++state_.generation;
    if (transport_ != nullptr && (state_.status & VIRTIO_STATUS_DRIVER_OK) != 0)
        transport_->interrupt(VirtioTransport::Cause::Config, Virtqueue::kNoVector);
}

// --- life cycle -------------------------------------------------------------------------------

/// Waits until every chain that was taken has been given back; holds_ is not 0.
void VirtioDevice::drain() {
    const auto is_drained = [this] {
        for (const auto& queue : queues_)
            if (queue.outstanding() != 0)
                return false;
        return true;
    };
    while (!is_drained())
        drained_.wait(lock_);
    finish_turn(); // what came back shall not be shown later
}

void VirtioDevice::reset() {
    const base::MutexLock lock{lock_};
    ++holds_;
    drain();
    --holds_;
    for (auto& queue : queues_)
        queue.reset();
    state_ = {};
    reset_own();
}

void VirtioDevice::pause() {
    const base::MutexLock lock{lock_};
    if (holds_++ == 0)
        paused_own();
    drain();
}

void VirtioDevice::resume() {
    const base::MutexLock lock{lock_};
    if (--holds_ != 0)
        return;
    resumed_own();
    notify_all();
}

// --- save and load ----------------------------------------------------------------------------

void VirtioDevice::save(state::Encoder& to) const {
    auto copy = state_;
    for (const auto& queue : queues_)
        copy.queues.push_back(queue.state());
    state::encode(to, Common::kSchema, copy);
    save_own(to);
}

base::Result<void> VirtioDevice::check_common(const Common& common) const {
    const auto refuse = [](const char* what) { return base::fail(base::Errc::Corrupt, what); };
    if (common.queues.size() != queues_.size())
        return refuse("number of virtqueues");
    if ((common.status & ~(kDriverStatus | VIRTIO_STATUS_NEEDS_RESET)) != 0)
        return refuse("status of a virtio device");
    const bool negotiated = (common.status & VIRTIO_STATUS_FEATURES_OK) != 0;
    if (negotiated && (common.driver_features & ~offered_features()) != 0)
        return refuse("a virtio feature that this device does not have");
    for (std::size_t i = 0; i < queues_.size(); ++i)
        DOPPEL_TRY_VOID(queues_[i].check(common.queues[i]));
    return {};
}

base::Result<void> VirtioDevice::check(state::Decoder from) const {
    Common common;
    DOPPEL_TRY_VOID(state::decode(from, Common::kSchema, common));
    DOPPEL_TRY_VOID(check_common(common));
    DOPPEL_TRY_VOID(check_own(from));
    if (from.remaining() != 0)
        return base::fail(base::Errc::Corrupt, "a virtio device's state is too long");
    return {};
}

void VirtioDevice::load(state::Decoder from) {
    Common common;
    DOPPEL_VERIFY(state::decode(from, Common::kSchema, common), "a state that was checked");
    const auto queues = std::exchange(common.queues, {});
    state_ = common;
    for (std::size_t i = 0; i < queues_.size(); ++i)
        queues_[i].load(queues[i], has_event_index());
    load_own(from);
    if ((state_.status & VIRTIO_STATUS_DRIVER_OK) != 0)
        driver_ready(state_.driver_features);
}

} // namespace doppel::devices
