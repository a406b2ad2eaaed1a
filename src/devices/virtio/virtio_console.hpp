// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Console (Virtual I/O Device 1.2 §5.3) on a chardev::Backend; Linux's first is hvc0.
/// Modelled: one port, input, output, emergency write.
/// Not modelled: several ports, the terminal's size (a byte stream has none).
#include <cstdint>
#include <vector>

#include "chardev/backend.hpp"
#include "devices/virtio/virtio_device.hpp"

namespace doppel::devices {

/// Any thread. The backend is called on the worker, with no lock held.
class VirtioConsole final : public StatefulVirtioDevice<VirtioConsole>,
                            private chardev::ByteReceiver {
public:
    static constexpr std::size_t kInputBytes = 4096;

    struct State {
        std::vector<std::uint8_t> input{}; // came, and the driver had no buffer for it
        base::Result<void> validate() const;
    };
    static constexpr auto kSchema =
        state::schema("virtio-console", 1, state::field(1, "input", &State::input));

    /// Both outlive the device; so does what the worker has to do when it ends.
    VirtioConsole(chardev::Backend& backend, memory::GuestMemory& memory, base::EventLoop& worker);
    ~VirtioConsole() override;

private:
    friend StatefulVirtioDevice<VirtioConsole>;

    // --- VirtioDevice ---
    Serve serve_queue(unsigned index) override;
    void config_bytes(std::vector<std::byte>& out) const override;
    void config_written(std::uint32_t offset, std::uint8_t size, std::uint64_t value) override;
    void reset_own() override;

    // --- ByteReceiver ---
    std::size_t can_receive() const noexcept override;
    void receive(std::span<const std::byte> bytes) noexcept override;

    void give_input();
    void input_shrank(std::size_t before);
    void print(const DescriptorChain& chain);
    void tell_backend_soon();
    void tell_backend();

    chardev::Backend& backend_;
    base::EventLoop& worker_loop_;
    // Guarded by lock_:
    std::vector<std::byte> output_; // not yet with the backend
    bool is_posted_ = false;        // tell_backend() will run
    bool has_room_ = false;         // for input, and the backend does not know
    DescriptorChain buffer_;
    State state_;
};

} // namespace doppel::devices
