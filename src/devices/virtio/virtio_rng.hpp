// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Entropy device (Virtual I/O Device 1.2 §5.4): fills the driver's buffers from getrandom().
#include "devices/virtio/virtio_device.hpp"

namespace doppel::devices {

/// Any thread.
class VirtioRng final : public StatefulVirtioDevice<VirtioRng> {
public:
    struct State {};
    static constexpr auto kSchema = state::schema<State>("virtio-rng", 1);

    VirtioRng(memory::GuestMemory& memory, base::EventLoop& worker);

private:
    friend StatefulVirtioDevice<VirtioRng>;
    Serve serve_queue(unsigned index) override;
    std::uint32_t fill(const DescriptorChain& chain);
    State state_;
};

} // namespace doppel::devices
