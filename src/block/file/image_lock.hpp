// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Keeps two writers away from one image: open-file-description locks on the bytes that QEMU uses
/// (block/file-posix.c of QEMU 2.10 and later): a byte from 100 on for each permission held, one
/// from 200 on for each that others may not have. They end with the descriptor. Any thread.
#include <string>

#include "base/result.hpp"

namespace doppel::block {

enum class Access : unsigned char { ReadOnly, ReadWrite };

/// Locks the image behind `fd` for reading it consistently, or for writing and resizing it; both
/// keep other writers out. Error Busy names the process that holds the image, where /proc tells.
base::Result<void> lock_image(int fd, const std::string& path, Access access);

} // namespace doppel::block
