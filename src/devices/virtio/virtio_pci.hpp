// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A virtio device as a PCI function (Virtual I/O Device 1.2 §4.1): capabilities for the common,
/// notification, interrupt-status and device-specific structures, all in BAR 0, access to them
/// through configuration space, one MSI-X vector per queue and one for configuration changes, INTx
/// where the driver uses no MSI-X.
/// Not modelled: the legacy interface (a transitional device), shared memory regions,
/// notification data, queue reset.
#include <array>
#include <memory>
#include <vector>

#include "devices/pci/pci_device.hpp"
#include "devices/virtio/virtio_device.hpp"

namespace doppel::devices {

/// Any thread. The device's lock is above mutex_: nothing calls it with mutex_ held.
class VirtioPci final : public StatefulPciDevice<VirtioPci>, private VirtioTransport {
public:
    struct State {
        std::uint32_t device_feature_select = 0;
        std::uint32_t driver_feature_select = 0;
        std::uint16_t queue_select = 0;
        std::uint16_t config_vector = Virtqueue::kNoVector;
        std::uint8_t isr = 0;
        std::vector<std::uint8_t> device{}; // what VirtioDevice::save() gives
    };
    static constexpr auto kSchema = state::schema(
        "virtio-pci", 1, state::field(1, "device_feature_select", &State::device_feature_select),
        state::field(2, "driver_feature_select", &State::driver_feature_select),
        state::field(3, "queue_select", &State::queue_select),
        state::field(4, "config_vector", &State::config_vector),
        state::field(5, "isr", &State::isr), state::field(6, "device", &State::device));

    explicit VirtioPci(std::unique_ptr<VirtioDevice> device);

    VirtioDevice& device() { return *device_; }
    /// Construction, for an engine that notices notifications by itself. Errors: the system's.
    base::Result<void> use_doorbells();
    void pause() override { device_->pause(); }
    void resume() override { device_->resume(); }

    // Places in BAR 0: guest ABI.
    static constexpr std::uint64_t kCommon = 0, kIsr = 0x1000, kDeviceConfig = 0x2000,
                                   kNotify = 0x3000, kMsixTable = 0x4000, kMsixPending = 0x5000,
                                   kBarBytes = 0x8000;
    static constexpr std::uint32_t kNotifyStride = 4; // bytes per queue

private:
    friend StatefulPciDevice<VirtioPci>;

    /// One of the structures: where it lies, who answers.
    struct Window {
        std::uint64_t offset;
        std::uint64_t bytes;
        bus::IoHandler* handler;
        const bus::Doorbells* doorbells = nullptr;
    };

    void add_windows();
    void add_capability_of(std::uint8_t type, const Window& window);
    void add_config_access();

    std::uint64_t read_common(bus::IoAccess io);
    void write_common(bus::IoAccess io, std::uint64_t value);
    std::uint64_t read_queue(bus::IoAccess io, unsigned index) const;
    void write_queue(bus::IoAccess io, unsigned index, std::uint64_t value);
    std::uint64_t read_isr(bus::IoAccess io);
    std::uint64_t read_device(bus::IoAccess io);
    void write_device(bus::IoAccess io, std::uint64_t value);
    void write_notify(bus::IoAccess io, std::uint64_t value);
    std::uint64_t read_nothing(bus::IoAccess) { return 0; }
    void write_nothing(bus::IoAccess, std::uint64_t) {}
    std::uint16_t valid_vector(std::uint64_t value) const;

    // --- PciDevice ---
    void reset_device() override;
    void before_config_read(std::uint16_t offset, std::uint8_t size) override;
    void after_config_write(std::uint16_t offset, std::uint8_t size) override;
    const Window* config_access(bus::IoAccess& io) const;
    bool touches_access_data(std::uint16_t offset, std::uint8_t size) const;

    // --- VirtioTransport ---
    void interrupt(Cause cause, std::uint16_t vector) override;
    bool may_use_memory() const noexcept override { return may_use_dma(); }

    // --- StatefulPciDevice ---
    void capture(State& copy) const;
    base::Result<void> check(const State& state) const;
    void state_loaded() DOPPEL_REQUIRES(mutex_);

    const std::unique_ptr<VirtioDevice> device_;
    std::uint16_t access_ = 0; // offset of the capability for access through configuration space
    IoRange<VirtioPci> common_io_{*this, &VirtioPci::read_common, &VirtioPci::write_common};
    IoRange<VirtioPci> isr_io_{*this, &VirtioPci::read_isr, &VirtioPci::write_nothing};
    IoRange<VirtioPci> device_io_{*this, &VirtioPci::read_device, &VirtioPci::write_device};
    IoRange<VirtioPci> notify_io_{*this, &VirtioPci::read_nothing, &VirtioPci::write_notify};
    bus::Doorbells doorbells_{kNotifyStride};
    std::array<Window, 4> windows_;
    State state_ DOPPEL_GUARDED_BY(mutex_);
};

} // namespace doppel::devices
