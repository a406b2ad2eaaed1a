// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What every virtio device has, whatever bus it sits on: feature negotiation, status, virtqueues,
/// configuration space, state (Virtual I/O Device 1.2 §2, §3). A device derives from
/// StatefulVirtioDevice<itself>, names its traits and serves its queues:
///
///     class VirtioExample final : public StatefulVirtioDevice<VirtioExample> {
///     public:
///         struct State {};
///         static constexpr auto kSchema = state::schema<State>("virtio-example", 1);
///         VirtioExample(memory::GuestMemory& memory, base::EventLoop& worker)
///             : StatefulVirtioDevice{{.id = …, .queue_sizes = {256}}, memory, worker} {}
///     private:
///         friend StatefulVirtioDevice<VirtioExample>;
///         Serve serve_queue(unsigned index) override { return serve_chains(index, …); }
///         State state_;
///     };
///
/// Threads: registers come from vCPUs, queues are served on the worker's loop; a notification only
/// rings its doorbell, by notify() or, where the engine notices it by itself, by an eventfd. All of
/// a device is guarded by one lock, lock_; the hooks below run with it held and may call their
/// backend. Below it are only the transport's own locks. A driver that breaks the rules gets
/// DEVICE_NEEDS_RESET (§2.1.2) and nothing more until it resets.
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/event_loop.hpp"
#include "base/mutex.hpp"
#include "base/unique_fd.hpp"
#include "devices/virtio/virtqueue.hpp"

namespace doppel::devices {

// Feature bits of §6 that the queues below have, all of them offered by every device.
inline constexpr std::uint64_t VIRTIO_F_INDIRECT_DESC = 1ull << 28, VIRTIO_F_EVENT_IDX = 1ull << 29,
                               VIRTIO_F_VERSION_1 = 1ull << 32;
// Device status (§2.1).
inline constexpr std::uint8_t VIRTIO_STATUS_ACKNOWLEDGE = 1, VIRTIO_STATUS_DRIVER = 2,
                              VIRTIO_STATUS_DRIVER_OK = 4, VIRTIO_STATUS_FEATURES_OK = 8,
                              VIRTIO_STATUS_NEEDS_RESET = 0x40, VIRTIO_STATUS_FAILED = 0x80;

/// The bus below a device. Any thread; the device's lock may be held.
class VirtioTransport {
public:
    enum class Cause : std::uint8_t { Queue, Config };
    virtual ~VirtioTransport() = default;
    /// `vector` is what the driver chose for a queue; for Config the transport knows.
    virtual void interrupt(Cause cause, std::uint16_t vector) = 0;
    /// Whether the device may touch guest memory at all.
    virtual bool may_use_memory() const noexcept = 0;
};

struct VirtioTraits {
    const char* name = "";        // for the log
    std::uint16_t id = 0;         // §5
    std::uint32_t class_code = 0; // PCI class, subclass, interface
    std::uint64_t features = 0;   // beyond those above
    std::vector<std::uint16_t> queue_sizes{};
};

/// Any thread, unless a function says otherwise.
class VirtioDevice {
public:
    static constexpr unsigned kMaxQueues = 64;

    VirtioDevice(VirtioTraits traits, memory::GuestMemory& memory, base::EventLoop& worker);
    virtual ~VirtioDevice();
    VirtioDevice(const VirtioDevice&) = delete;
    VirtioDevice& operator=(const VirtioDevice&) = delete;

    const VirtioTraits& traits() const { return traits_; }
    /// Construction: who carries interrupts; outlives the device's work.
    void attach(VirtioTransport& transport) { transport_ = &transport; }
    /// Construction: an eventfd per queue, which rings as notify() does, without a call of ours.
    /// The device keeps them. Errors: the system's.
    base::Result<std::vector<int>> open_doorbells();

    // --- registers, for the transport ---
    std::uint64_t offered_features() const;
    std::uint64_t driver_features() const;
    void set_driver_features(unsigned word, std::uint32_t value);
    std::uint8_t status() const;
    /// Writing 0 resets, and returns when the device has let go of guest memory (§2.4).
    void set_status(std::uint8_t value);
    std::uint8_t config_generation() const;
    unsigned queue_count() const { return static_cast<unsigned>(traits_.queue_sizes.size()); }
    /// `index` below queue_count(). What changes in an enabled queue is ignored, but for `vector`.
    Virtqueue::State queue(unsigned index) const;
    void set_queue(unsigned index, const Virtqueue::State& state);
    std::uint64_t read_config(std::uint32_t offset, std::uint8_t size) const;
    void write_config(std::uint32_t offset, std::uint8_t size, std::uint64_t value);
    /// The doorbell: lock-free but for the worker's list of tasks.
    void notify(unsigned index);
    void notify_all();

    // --- life cycle; control thread, vCPUs paused ---
    void reset();
    /// Afterwards the worker touches neither guest memory nor the device: what was in flight is
    /// done. Registers still answer.
    void pause();
    void resume();

    // --- save and load; paused ---
    void save(state::Encoder& to) const;
    base::Result<void> check(state::Decoder from) const;
    void load(state::Decoder from); // what check() took

protected:
    enum class Serve : std::uint8_t {
        WantsMore, // to be called again as soon as there are chains
        Waits,     // for something else: the device calls notify() or serves on its own
    };

    // --- hooks; lock_ is held ---
    /// On the worker: there may be chains. At most a queue's worth per call.
    virtual Serve serve_queue(unsigned index) = 0;
    virtual void config_bytes(std::vector<std::byte>& /*out*/) const {}
    virtual void config_written(std::uint32_t /*offset*/, std::uint8_t /*size*/,
                                std::uint64_t /*value*/) {}
    /// The driver is ready (after load too): negotiated features are final.
    virtual void driver_ready(std::uint64_t /*features*/) {}
    virtual void reset_own() = 0;
    /// Between them no backend may call in; both are called in pairs.
    virtual void paused_own() {}
    virtual void resumed_own() {}
    virtual void save_own(state::Encoder& to) const = 0;
    virtual base::Result<void> check_own(state::Decoder& from) const = 0;
    virtual void load_own(state::Decoder& from) = 0;

    // --- for devices; lock_ is held ---
    Virtqueue& virtqueue(unsigned index) { return queues_[index]; }
    memory::GuestMemory& memory() { return memory_; }
    bool has_feature(std::uint64_t feature) const {
        return (state_.driver_features & feature) != 0;
    }
    /// Hands chain after chain to handle(chain), which says how many bytes it wrote, and gives them
    /// back.
    template <typename Handle> Serve serve_chains(unsigned index, Handle&& handle) {
        auto& queue = queues_[index];
        for (unsigned left = queue.state().size; left != 0 && queue.pop(chain_); --left)
            queue.push(chain_.head, handle(chain_));
        return Serve::WantsMore;
    }
    /// The driver did what it must not.
    void driver_failed(const char* why);
    void config_changed();

    // --- for devices, from any thread, lock_ not held ---
    /// Runs work() under the lock if queues may be served now, then tells the driver; whether it
    /// ran.
    template <typename Work> bool with_queues(Work&& work) {
        const base::MutexLock lock{lock_};
        const bool active = is_active();
        if (active)
            work();
        finish_turn();
        return active;
    }

    /// For what completes later, on the worker: gives chains back, paused or not. The driver is
    /// told when the loop has nothing else to do, once for all.
    template <typename Work> void give_back(Work&& work) {
        const base::MutexLock lock{lock_};
        work();
        has_news_.store(true, std::memory_order_relaxed);
    }

    mutable base::Mutex lock_;

private:
    struct Common {
        std::uint8_t status = 0;
        std::uint64_t driver_features = 0;
        std::uint8_t generation = 0;
        std::vector<Virtqueue::State> queues{}; // while saving and loading; else queues_ has them
        static constexpr auto kSchema =
            state::schema("virtio-device", 1, state::field(1, "status", &Common::status),
                          state::field(2, "driver_features", &Common::driver_features),
                          state::field(3, "generation", &Common::generation),
                          state::field(4, "queues", &Common::queues));
    };

    void rung(unsigned index);
    void serve();
    bool is_active() const;
    void finish_turn();
    bool tell_news();
    void drain();
    void driver_is_ready();
    bool has_event_index() const { return has_feature(VIRTIO_F_EVENT_IDX); }
    base::Result<void> check_common(const Common& common) const;

    const VirtioTraits traits_;
    memory::GuestMemory& memory_; // both owned by the Machine's owner, outlive the devices
    base::EventLoop& worker_;
    VirtioTransport* transport_ = nullptr;
    std::vector<base::UniqueFd> doorbells_; // by queue; none where notify() is called
    std::atomic<std::uint64_t> kicked_{0};  // one bit per queue with an unserved notification
    std::atomic<bool> has_news_{false};     // given back and not yet shown to the driver
    std::uint64_t poll_number_ = 0;
    // All below: guarded by lock_; while paused the control thread saves and loads without it.
    Common state_;
    std::vector<Virtqueue> queues_;
    DescriptorChain chain_;
    unsigned holds_ = 0; // pause() and a reset that waits: nothing new is begun
    std::condition_variable_any drained_;
};

/// save and load of D's own part from D::kSchema and D::state_; D may hide check().
template <typename D> class StatefulVirtioDevice : public VirtioDevice {
public:
    using VirtioDevice::VirtioDevice;

protected:
    void save_own(state::Encoder& to) const final {
        state::encode(to, D::kSchema, static_cast<const D&>(*this).state_);
    }
    base::Result<void> check_own(state::Decoder& from) const final {
        typename D::State fresh{};
        return state::decode(from, D::kSchema, fresh);
    }
    void load_own(state::Decoder& from) final {
        typename D::State fresh{};
        if (state::decode(from, D::kSchema, fresh))
            static_cast<D&>(*this).state_ = std::move(fresh);
    }
    void reset_own() override { static_cast<D&>(*this).state_ = {}; }
};

} // namespace doppel::devices
