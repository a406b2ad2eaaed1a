// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What a saved VM remembers of its disks. A guest's RAM knows what is on its disks: gone on with a
/// disk that has changed since, it would write what it remembers over what is there.
#include "base/result.hpp"
#include "block/drive.hpp"
#include "description/machine.hpp"
#include "vmm/state_file/saved_vm.hpp"

namespace doppel::vmm {

/// Nothing is in flight on the drive. The time of the last change is known of raw images in files;
/// others are written to when they are closed.
SavedDisk record_disk(const description::Disk& disk, const block::Drive& drive);

/// Error when the disk is not as it was: InvalidArgument.
base::Result<void> check_disk(const SavedDisk& saved, const description::Disk& disk,
                              const block::Drive& drive);

} // namespace doppel::vmm
