// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/virtio_rng.hpp"

#include <sys/random.h>

#include <algorithm>
#include <array>

namespace doppel::devices {

namespace {

/// Per request: more is the driver's to ask for again, so that no request holds the worker long.
constexpr std::size_t kMaxBytes = 0x10000;

} // namespace

VirtioRng::VirtioRng(memory::GuestMemory& memory, base::EventLoop& worker)
    : StatefulVirtioDevice{
          {.name = "virtio-rng", .id = 4, .class_code = 0x00'ff'00, .queue_sizes = {64}},
          memory,
          worker} {}

VirtioDevice::Serve VirtioRng::serve_queue(unsigned index) {
    return serve_chains(index, [this](const DescriptorChain& chain) { return fill(chain); });
}

std::uint32_t VirtioRng::fill(const DescriptorChain& chain) {
    const auto wanted = std::min<std::uint64_t>(total_bytes(chain.writable()), kMaxBytes);
    std::array<std::byte, 256> bytes; // getrandom() gives up to this much whole
    std::uint32_t done = 0;
    while (done < wanted) {
        const auto here = std::min<std::size_t>(bytes.size(), wanted - done);
        if (::getrandom(bytes.data(), here, 0) != static_cast<ssize_t>(here))
            continue; // interrupted by a signal
        const auto copied =
            write_ranges(memory(), chain.writable(), done, std::span{bytes}.first(here));
        done += static_cast<std::uint32_t>(copied);
        if (copied < here)
            break;
    }
    return done;
}

} // namespace doppel::devices
