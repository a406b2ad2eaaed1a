// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Doorbells: writes that only have to be noticed, whatever they write, such as a driver's "there
/// is work in queue 3". Where an engine can notice them by itself (KVM's ioeventfd), the vCPU goes
/// on at once and the device's own thread wakes; elsewhere, and where the engine has no room, the
/// mapping's IoHandler gets the write as always.
#include <cstdint>
#include <vector>

namespace doppel::bus {

/// Of one mapping: a write at offset i * stride_bytes rings eventfds[i]. None: no doorbells.
/// The device owns it and the descriptors, and changes it only while nothing is mapped.
struct Doorbells {
    std::uint32_t stride_bytes = 0;
    std::vector<int> eventfds{};
};

/// An engine that notices writes by itself. Any thread.
class DoorbellHost {
public:
    virtual ~DoorbellHost() = default;
    /// Writes of any size at guest-physical `address` ring `eventfd` from now on. Best effort.
    virtual void hang(std::uint64_t address, int eventfd) noexcept = 0;
    /// The reverse; nothing happens where hang() had no room. Rings may still be under way.
    virtual void take_down(std::uint64_t address, int eventfd) noexcept = 0;
};

} // namespace doppel::bus
