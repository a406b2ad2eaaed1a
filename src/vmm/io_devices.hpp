// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The devices with a host side of their own (disks, networks, consoles, entropy): opens what they
/// need on the host, and has a worker thread for each.
#include <memory>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "description/machine.hpp"
#include "machine/pc.hpp"
#include "vmm/state_file/saved_vm.hpp"

namespace doppel::vmm {

/// Control thread only. Outlives the board.
class IoDevices {
public:
    /// Opens all of it. `console`: the host's side of the virtio console, which outlives this; null
    /// where the machine has none. Errors are the user's or the host's, and name the disk or
    /// network.
    static base::Result<std::unique_ptr<IoDevices>> open(const description::Machine& machine,
                                                         chardev::Backend* console);
    ~IoDevices();
    IoDevices(const IoDevices&) = delete;
    IoDevices& operator=(const IoDevices&) = delete;

    /// What the board shall have; good as long as this lives.
    std::vector<machine::PcVirtio> functions();

    /// Of all disks, while the devices are paused.
    std::vector<SavedDisk> record_disks() const;
    /// Errors: a disk is not as it was; Corrupt: of other disks. None of a VM that was saved
    /// before disks were recorded.
    base::Result<void> check_disks(const std::vector<SavedDisk>& saved) const;

    void start();
    /// Any thread, between start() and close(): what the guest has written is on stable storage.
    base::Result<void> flush();
    /// The devices are paused for good: ends the threads, closes the images.
    base::Result<void> close();

private:
    struct Impl;
    explicit IoDevices(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

} // namespace doppel::vmm
