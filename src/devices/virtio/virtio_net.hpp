// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Network card (Virtual I/O Device 1.2 §5.1) on a net::Backend.
/// Modelled: one pair of queues, merged receive buffers, checksums for the driver, long TCP
/// segments from it where the backend takes them, MTU, link state, control queue with receive
/// modes, address tables and the card's own address. Not modelled: several pairs of queues, long
/// segments to the driver, VLAN filter, announcements.
#include <vector>

#include "devices/virtio/receive_filter.hpp"
#include "devices/virtio/virtio_device.hpp"
#include "net/backend.hpp"

namespace doppel::devices {

/// Any thread, except that the backend calls and is called on the worker's: it lives as long as the
/// worker runs.
class VirtioNet final : public StatefulVirtioDevice<VirtioNet>, private net::FrameReceiver {
public:
    struct State {
        ReceiveFilter filter{};
    };
    static constexpr auto kSchema =
        state::schema("virtio-net", 1, state::field(1, "filter", &State::filter));

    struct Options {
        MacAddress mac{};
        std::uint16_t mtu = kEthernetMtu; // told to the driver when it is another
    };
    static constexpr std::uint16_t kEthernetMtu = 1500;

    VirtioNet(net::Backend& backend, const Options& options, memory::GuestMemory& memory,
              base::EventLoop& worker);
    ~VirtioNet() override;

private:
    friend StatefulVirtioDevice<VirtioNet>;
    struct Header;

    // --- VirtioDevice ---
    Serve serve_queue(unsigned index) override;
    void config_bytes(std::vector<std::byte>& out) const override;
    void reset_own() override;
    void paused_own() override { is_paused_ = true; }
    void resumed_own() override { is_paused_ = false; }

    // --- from the driver ---
    void send(const DescriptorChain& chain);
    bool prepare(const Header& header, std::span<std::byte> frame) const;
    std::uint32_t control(const DescriptorChain& chain);
    bool obey(std::span<const std::byte> command);

    // --- to the driver ---
    std::size_t receive(std::span<const net::Frame> frames) noexcept override;
    enum class Delivery : std::uint8_t { Taken, NoRoom };
    Delivery deliver(net::Frame frame);
    void write(std::size_t chains, net::Frame frame);

    net::Backend& backend_; // owned by the machine's owner
    const Options options_;
    std::vector<std::byte> frame_;        // that the driver sends
    std::vector<DescriptorChain> chains_; // of one frame that it gets
    bool is_paused_ = false;
    State state_;
};

} // namespace doppel::devices
