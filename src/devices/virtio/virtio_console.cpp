// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/virtio_console.hpp"

#include <algorithm>

#include "base/bytes.hpp"

namespace doppel::devices {

namespace {

constexpr std::uint64_t VIRTIO_CONSOLE_F_EMERG_WRITE = 1u << 2;
// struct virtio_console_config (§5.3.4).
constexpr std::size_t kMaxPorts = 4, kEmergencyWrite = 8, kConfigBytes = 12;
constexpr unsigned kReceive = 0, kTransmit = 1;
constexpr std::uint16_t kQueueSize = 64;
constexpr std::uint64_t kMaxPrint = 0x10000; // bytes of one buffer: nobody prints more at once

} // namespace

base::Result<void> VirtioConsole::State::validate() const {
    if (input.size() > kInputBytes)
        return base::fail(base::Errc::Corrupt, "input of a virtio console");
    return {};
}

VirtioConsole::VirtioConsole(chardev::Backend& backend, memory::GuestMemory& memory,
                             base::EventLoop& worker)
    : StatefulVirtioDevice{{.name = "virtio-console",
                            .id = 3,
                            .class_code = 0x07'80'00,
                            .features = VIRTIO_CONSOLE_F_EMERG_WRITE,
                            .queue_sizes = {kQueueSize, kQueueSize}},
                           memory,
                           worker},
      backend_{backend}, worker_loop_{worker} {
    backend_.set_receiver(this);
}

VirtioConsole::~VirtioConsole() { backend_.set_receiver(nullptr); }

void VirtioConsole::config_bytes(std::vector<std::byte>& out) const {
    out.resize(kConfigBytes);
    base::store_le(out.data() + kMaxPorts, std::uint32_t{1});
}

/// §5.3.4: one character, whatever state the device is in.
void VirtioConsole::config_written(std::uint32_t offset, std::uint8_t, std::uint64_t value) {
    if (offset != kEmergencyWrite)
        return;
    output_.push_back(static_cast<std::byte>(value));
    tell_backend_soon();
}

VirtioDevice::Serve VirtioConsole::serve_queue(unsigned index) {
    if (index == kTransmit)
        return serve_chains(index, [this](const DescriptorChain& chain) {
            print(chain);
            return 0u;
        });
    give_input();
    return Serve::Waits; // until input finds no buffer
}

// --- output -----------------------------------------------------------------------------------

void VirtioConsole::print(const DescriptorChain& chain) {
    const auto bytes = std::min(total_bytes(chain.readable()), kMaxPrint);
    const auto before = output_.size();
    output_.resize(before + bytes);
    read_ranges(memory(), chain.readable(), 0, std::span{output_}.subspan(before));
    tell_backend_soon();
}

/// The backend may wait for its reader, and must not be called with the lock held.
void VirtioConsole::tell_backend_soon() {
    if (!std::exchange(is_posted_, true))
        worker_loop_.post([this] { tell_backend(); });
}

void VirtioConsole::tell_backend() {
    std::vector<std::byte> output;
    bool has_room = false;
    {
        const base::MutexLock lock{lock_};
        is_posted_ = false;
        output.swap(output_);
        has_room = std::exchange(has_room_, false);
    }
    if (!output.empty())
        backend_.write(output);
    if (has_room)
        backend_.receiver_ready();
}

// --- input ------------------------------------------------------------------------------------

std::size_t VirtioConsole::can_receive() const noexcept {
    const base::MutexLock lock{lock_};
    return kInputBytes - state_.input.size();
}

void VirtioConsole::receive(std::span<const std::byte> bytes) noexcept {
    {
        const base::MutexLock lock{lock_};
        const auto room = kInputBytes - state_.input.size();
        for (const auto byte : bytes.first(std::min(bytes.size(), room)))
            state_.input.push_back(std::to_integer<std::uint8_t>(byte));
    }
    with_queues([this] { give_input(); });
}

/// Into as many of the driver's buffers as it takes; without one, the next rings.
void VirtioConsole::give_input() {
    auto& queue = virtqueue(kReceive);
    auto& input = state_.input;
    const auto before = input.size();
    std::size_t given = 0;
    while (given < input.size() &&
           (queue.pop(buffer_) || (queue.enable_notifications() && queue.pop(buffer_)))) {
        const auto rest = std::as_bytes(std::span{input}.subspan(given));
        const auto room = std::min<std::uint64_t>(total_bytes(buffer_.writable()), rest.size());
        write_ranges(memory(), buffer_.writable(), 0, rest.first(room));
        queue.push(buffer_.head, static_cast<std::uint32_t>(room));
        given += room;
    }
    input.erase(input.begin(), input.begin() + static_cast<std::ptrdiff_t>(given));
    input_shrank(before);
}

/// A backend that found no room waits until it hears of some.
void VirtioConsole::input_shrank(std::size_t before) {
    if (before != kInputBytes || state_.input.size() == before)
        return;
    has_room_ = true;
    tell_backend_soon();
}

void VirtioConsole::reset_own() {
    const auto before = state_.input.size();
    state_ = {};
    input_shrank(before);
}

} // namespace doppel::devices
