// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Network card (Virtual I/O Device 1.2 §5.1) on a net::Backend.
/// Modelled: one pair of queues, merged receive buffers, checksums for the driver, long TCP
/// segments from it where the backend takes them, merged segments to it, MTU, link state, control
/// queue with receive modes, address tables, the card's own address, and offloads that the driver
/// gives up. Not modelled: several pairs of queues, VLAN filter, announcements.
#include <atomic>
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
        std::uint64_t refused_offloads = 0; // feature bits that the driver takes no more
    };
    static constexpr auto kSchema =
        state::schema("virtio-net", 1, state::field(1, "filter", &State::filter),
                      state::field(2, "refused_offloads", &State::refused_offloads));

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
    void driver_ready(std::uint64_t features) override;
    void reset_own() override;
    void paused_own() override { is_paused_ = true; }
    void resumed_own() override { is_paused_ = false; }

    // --- from the driver ---
    void send(const DescriptorChain& chain);
    bool prepare(const Header& header, std::span<std::byte> frame) const;
    std::uint32_t control(const DescriptorChain& chain);
    bool obey(std::span<const std::byte> command);
    bool obey_mac(std::uint8_t number, std::span<const std::byte> data);
    bool set_offloads(std::span<const std::byte> data);
    bool has_offload(std::uint64_t feature) const {
        return has_feature(feature) && (state_.refused_offloads & feature) == 0;
    }

    // --- to the driver ---
    std::size_t receive(std::span<const net::Arrival> frames) noexcept override;
    bool takes_merged_segments() const noexcept override {
        return merges_.load(std::memory_order_relaxed);
    }
    enum class Delivery : std::uint8_t { Taken, NoRoom };
    Delivery deliver(const net::Arrival& arrival);
    bool takes(const net::Arrival& arrival) const;
    void write(std::size_t chains, const net::Arrival& arrival);
    Header header_of(const net::Arrival& arrival) const;
    void offloads_changed();

    net::Backend& backend_; // owned by the machine's owner
    const Options options_;
    std::vector<std::byte> frame_;        // that the driver sends
    std::vector<DescriptorChain> chains_; // of one frame that it gets
    bool is_paused_ = false;
    std::atomic<bool> merges_{false}; // the driver takes several segments as one frame
    State state_;
};

} // namespace doppel::devices
