// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/virtio_pci.hpp"

#include <algorithm>

namespace doppel::devices {

namespace {

constexpr std::uint16_t kVendor = 0x1af4, kFirstModernId = 0x1040; // §4.1.2
constexpr std::uint16_t kSubsystem = 0x1100;                       // at least 0x40, §4.1.2.1

// struct virtio_pci_cap (§4.1.4): offsets from its start.
constexpr std::uint16_t kCapType = 3, kCapBar = 4, kCapOffset = 8, kCapLength = 12, kCapMore = 16;
constexpr std::uint8_t kCapBytes = 16, kCapBytesLonger = 20;
constexpr std::uint8_t VIRTIO_PCI_CAP_COMMON_CFG = 1, VIRTIO_PCI_CAP_NOTIFY_CFG = 2,
                       VIRTIO_PCI_CAP_ISR_CFG = 3, VIRTIO_PCI_CAP_DEVICE_CFG = 4,
                       VIRTIO_PCI_CAP_PCI_CFG = 5;

// struct virtio_pci_common_cfg (§4.1.4.3).
constexpr std::uint64_t kDeviceFeatureSelect = 0x00, kDeviceFeature = 0x04,
                        kDriverFeatureSelect = 0x08, kDriverFeature = 0x0c, kConfigVector = 0x10,
                        kNumQueues = 0x12, kDeviceStatus = 0x14, kConfigGeneration = 0x15,
                        kQueueSelect = 0x16, kQueueSize = 0x18, kQueueVector = 0x1a,
                        kQueueEnable = 0x1c, kQueueNotifyOff = 0x1e, kQueueDescriptors = 0x20,
                        kQueueDriver = 0x28, kQueueDevice = 0x30, kCommonBytes = 0x38;
constexpr std::uint64_t kDeviceConfigBytes = 0x1000;

constexpr std::uint8_t kIsrQueue = 1, kIsrConfig = 2; // §4.1.4.5

PciIdentity identity_of(const VirtioTraits& traits) {
    return {.vendor = kVendor,
            .device = static_cast<std::uint16_t>(kFirstModernId + traits.id),
            .class_code = traits.class_code,
            .revision = 1,
            .subsystem_vendor = kVendor,
            .subsystem = kSubsystem,
            .interrupt_pin = 1};
}

std::uint16_t at(std::uint16_t capability, std::uint16_t offset) {
    return static_cast<std::uint16_t>(capability + offset);
}

std::uint64_t half(std::uint64_t value, std::uint64_t offset) {
    return (offset & 4) != 0 ? value >> 32 : value & 0xffff'ffff;
}

void set_half(std::uint64_t& to, std::uint64_t offset, std::uint64_t value) {
    const unsigned shift = (offset & 4) != 0 ? 32 : 0;
    to = (to & ~(0xffff'ffffull << shift)) | (value & 0xffff'ffff) << shift;
}

} // namespace

VirtioPci::VirtioPci(std::unique_ptr<VirtioDevice> device)
    : StatefulPciDevice{identity_of(device->traits())}, device_{std::move(device)},
      windows_{{{kCommon, kCommonBytes, &common_io_},
                {kIsr, 4, &isr_io_},
                {kDeviceConfig, kDeviceConfigBytes, &device_io_},
                {kNotify, std::uint64_t{kNotifyStride} * device_->queue_count(), &notify_io_,
                 &doorbells_}}} {
    device_->attach(*this);
    add_bar(0, {.bytes = kBarBytes, .kind = BarKind::Memory64});
    add_windows();
    add_msix(device_->queue_count() + 1, 0, kMsixTable, kMsixPending);
    add_express();
}

void VirtioPci::add_windows() {
    constexpr std::array<const char*, 4> kNames{"virtio common", "virtio isr", "virtio device",
                                                "virtio notify"};
    for (std::size_t i = 0; i < windows_.size(); ++i)
        add_region(0, {.offset = windows_[i].offset,
                       .bytes = windows_[i].bytes,
                       .name = kNames[i],
                       .rules = {1, 4, false},
                       .handler = windows_[i].handler,
                       .doorbells = windows_[i].doorbells});
    add_capability_of(VIRTIO_PCI_CAP_COMMON_CFG, windows_[0]);
    add_capability_of(VIRTIO_PCI_CAP_ISR_CFG, windows_[1]);
    add_capability_of(VIRTIO_PCI_CAP_DEVICE_CFG, windows_[2]);
    add_capability_of(VIRTIO_PCI_CAP_NOTIFY_CFG, windows_[3]);
    add_config_access();
}

void VirtioPci::add_capability_of(std::uint8_t type, const Window& window) {
    const bool longer = type == VIRTIO_PCI_CAP_NOTIFY_CFG;
    const auto length = longer ? kCapBytesLonger : kCapBytes;
    const auto capability = add_capability(pci::kCapabilityVendor, length);
    define(at(capability, 2), 1, length);
    define(at(capability, kCapType), 1, type);
    define(at(capability, kCapOffset), 4, static_cast<std::uint32_t>(window.offset));
    define(at(capability, kCapLength), 4, static_cast<std::uint32_t>(window.bytes));
    if (longer)
        define(at(capability, kCapMore), 4, kNotifyStride);
}

/// §4.1.4.9: BAR, offset and length are the driver's; its accesses to the data go there.
void VirtioPci::add_config_access() {
    access_ = add_capability(pci::kCapabilityVendor, kCapBytesLonger);
    define(at(access_, 2), 1, kCapBytesLonger);
    define(at(access_, kCapType), 1, VIRTIO_PCI_CAP_PCI_CFG);
    define(at(access_, kCapBar), 1, 0, 0xff);
    define(at(access_, kCapOffset), 4, 0, ~0u);
    define(at(access_, kCapLength), 4, 0, ~0u);
    define(at(access_, kCapMore), 4, 0, ~0u);
}

// --- common configuration ---------------------------------------------------------------------

std::uint64_t VirtioPci::read_common(bus::IoAccess io) {
    State selected;
    {
        const base::MutexLock lock{mutex_};
        selected = state_;
    }
    const auto features = [](std::uint64_t bits, std::uint32_t word) {
        return word > 1 ? 0 : half(bits, std::uint64_t{word} * 4);
    };
    switch (io.offset) {
    case kDeviceFeatureSelect: return selected.device_feature_select;
    case kDeviceFeature:
        return features(device_->offered_features(), selected.device_feature_select);
    case kDriverFeatureSelect: return selected.driver_feature_select;
    case kDriverFeature:
        return features(device_->driver_features(), selected.driver_feature_select);
    case kConfigVector: return selected.config_vector;
    case kNumQueues: return device_->queue_count();
    case kDeviceStatus: return device_->status();
    case kConfigGeneration: return device_->config_generation();
    case kQueueSelect: return selected.queue_select;
    default:
        return selected.queue_select < device_->queue_count()
                   ? read_queue(io, selected.queue_select)
                   : 0; // §4.1.4.3.1: size 0 where there is no queue
    }
}

std::uint64_t VirtioPci::read_queue(bus::IoAccess io, unsigned index) const {
    const auto queue = device_->queue(index);
    switch (io.offset) {
    case kQueueSize: return queue.size;
    case kQueueVector: return queue.vector;
    case kQueueEnable: return queue.enabled;
    case kQueueNotifyOff: return index;
    case kQueueDescriptors:
    case kQueueDescriptors + 4: return half(queue.descriptors, io.offset);
    case kQueueDriver:
    case kQueueDriver + 4: return half(queue.available, io.offset);
    case kQueueDevice:
    case kQueueDevice + 4: return half(queue.used, io.offset);
    default: return 0;
    }
}

void VirtioPci::write_common(bus::IoAccess io, std::uint64_t value) {
    const auto word = static_cast<std::uint32_t>(value);
    unsigned queue = 0;
    unsigned driver_word = 0;
    {
        const base::MutexLock lock{mutex_};
        switch (io.offset) {
        case kDeviceFeatureSelect: state_.device_feature_select = word; return;
        case kDriverFeatureSelect: state_.driver_feature_select = word; return;
        case kConfigVector: state_.config_vector = valid_vector(value); return;
        case kQueueSelect: state_.queue_select = static_cast<std::uint16_t>(value); return;
        default: break;
        }
        queue = state_.queue_select;
        driver_word = state_.driver_feature_select;
    }
    if (io.offset == kDriverFeature)
        device_->set_driver_features(driver_word, word);
    else if (io.offset == kDeviceStatus && value == 0)
        reset_device();
    else if (io.offset == kDeviceStatus)
        device_->set_status(static_cast<std::uint8_t>(value));
    else if (queue < device_->queue_count())
        write_queue(io, queue, value);
}

void VirtioPci::write_queue(bus::IoAccess io, unsigned index, std::uint64_t value) {
    auto queue = device_->queue(index);
    switch (io.offset) {
    case kQueueSize: queue.size = static_cast<std::uint16_t>(value); break;
    case kQueueVector: queue.vector = valid_vector(value); break;
    case kQueueEnable: queue.enabled = value == 1; break; // §4.1.4.3.2: never 0
    case kQueueDescriptors:
    case kQueueDescriptors + 4: set_half(queue.descriptors, io.offset, value); break;
    case kQueueDriver:
    case kQueueDriver + 4: set_half(queue.available, io.offset, value); break;
    case kQueueDevice:
    case kQueueDevice + 4: set_half(queue.used, io.offset, value); break;
    default: return;
    }
    device_->set_queue(index, queue);
}

/// §4.1.5.1.2.1: a vector that does not exist reads back as none.
std::uint16_t VirtioPci::valid_vector(std::uint64_t value) const {
    return value <= device_->queue_count() ? static_cast<std::uint16_t>(value)
                                           : Virtqueue::kNoVector;
}

// --- the other structures ---------------------------------------------------------------------

/// §4.1.4.5.1: reading clears the register and lowers the wire.
std::uint64_t VirtioPci::read_isr(bus::IoAccess io) {
    if (io.offset != 0)
        return 0;
    const base::MutexLock lock{mutex_};
    set_intx(false);
    return std::exchange(state_.isr, std::uint8_t{0});
}

std::uint64_t VirtioPci::read_device(bus::IoAccess io) {
    return device_->read_config(static_cast<std::uint32_t>(io.offset), io.size);
}

void VirtioPci::write_device(bus::IoAccess io, std::uint64_t value) {
    device_->write_config(static_cast<std::uint32_t>(io.offset), io.size, value);
}

void VirtioPci::write_notify(bus::IoAccess io, std::uint64_t) {
    device_->notify(static_cast<unsigned>(io.offset / kNotifyStride));
}

base::Result<void> VirtioPci::use_doorbells() {
    doorbells_.eventfds = DOPPEL_TRY(device_->open_doorbells());
    return {};
}

void VirtioPci::interrupt(Cause cause, std::uint16_t vector) {
    const base::MutexLock lock{mutex_};
    if (signal(cause == Cause::Config ? state_.config_vector : vector))
        return;
    state_.isr |= cause == Cause::Config ? kIsrConfig : kIsrQueue;
    set_intx(true);
}

// --- PCI --------------------------------------------------------------------------------------

/// Board reset, function-level reset and the driver's own, which leave no interrupt behind.
void VirtioPci::reset_device() {
    device_->reset();
    const base::MutexLock lock{mutex_};
    state_ = {};
    set_intx(false);
}

bool VirtioPci::touches_access_data(std::uint16_t offset, std::uint8_t size) const {
    const auto data = at(access_, kCapMore);
    return offset < data + 4 && offset + size > data;
}

/// The structure that the driver looks at through configuration space, and what it asks of it.
const VirtioPci::Window* VirtioPci::config_access(bus::IoAccess& io) const {
    const auto length = config_value(at(access_, kCapLength), 4);
    io.offset = config_value(at(access_, kCapOffset), 4);
    if ((length != 1 && length != 2 && length != 4) || io.offset % length != 0 ||
        config_value(at(access_, kCapBar), 1) != 0)
        return nullptr;
    io.size = static_cast<std::uint8_t>(length);
    for (const auto& window : windows_) {
        if (io.offset >= window.offset && io.offset + length <= window.offset + window.bytes) {
            io.offset -= window.offset;
            return &window;
        }
    }
    return nullptr;
}

void VirtioPci::before_config_read(std::uint16_t offset, std::uint8_t size) {
    bus::IoAccess io{};
    if (!touches_access_data(offset, size))
        return;
    if (const auto* window = config_access(io))
        set_config_value(at(access_, kCapMore), 4,
                         static_cast<std::uint32_t>(window->handler->io_read(io)));
}

void VirtioPci::after_config_write(std::uint16_t offset, std::uint8_t size) {
    if (offset <= pci::kCommand && offset + size > pci::kCommand)
        device_->notify_all(); // bus mastering may have begun
    bus::IoAccess io{};
    if (!touches_access_data(offset, size))
        return;
    if (const auto* window = config_access(io)) {
        const std::uint64_t mask = (1ull << io.size * 8) - 1;
        window->handler->io_write(io, config_value(at(access_, kCapMore), 4) & mask);
    }
}

// --- state ------------------------------------------------------------------------------------

void VirtioPci::capture(State& copy) const {
    state::Encoder device;
    device_->save(device);
    for (const auto byte : device.bytes())
        copy.device.push_back(std::to_integer<std::uint8_t>(byte));
}

base::Result<void> VirtioPci::check(const State& state) const {
    return device_->check(state::Decoder{std::as_bytes(std::span{state.device})});
}

void VirtioPci::state_loaded() {
    device_->load(state::Decoder{std::as_bytes(std::span{state_.device})});
    state_.device.clear();
}

} // namespace doppel::devices
