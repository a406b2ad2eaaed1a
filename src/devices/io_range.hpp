// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One of several register ranges of a device that answers in more than one place.
#include "bus/io_handler.hpp"

namespace doppel::devices {

/// Any thread: forwards to two member functions of `device`, which locks. Part of the device.
template <typename D> class IoRange final : public bus::IoHandler {
public:
    using Read = std::uint64_t (D::*)(bus::IoAccess);
    using Write = void (D::*)(bus::IoAccess, std::uint64_t);

    IoRange(D& device, Read read, Write write) : device_{device}, read_{read}, write_{write} {}
    std::uint64_t io_read(bus::IoAccess io) override { return (device_.*read_)(io); }
    void io_write(bus::IoAccess io, std::uint64_t value) override { (device_.*write_)(io, value); }

private:
    D& device_;
    Read read_;
    Write write_;
};

} // namespace doppel::devices
