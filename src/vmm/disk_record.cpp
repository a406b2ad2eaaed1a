// SPDX-License-Identifier: Apache-2.0
#include "vmm/disk_record.hpp"

#include <sys/stat.h>

#include <fmt/core.h>

namespace doppel::vmm {

using base::Errc;
using base::Result;

namespace {

constexpr std::uint64_t kSecondNs = 1'000'000'000;

/// Nanoseconds since 1970, UTC; 0: unknown.
std::uint64_t changed_at(const description::Disk& disk) {
    struct stat info{};
    if (disk.format != "raw" || ::stat(disk.path.c_str(), &info) != 0 || !S_ISREG(info.st_mode))
        return 0;
    return static_cast<std::uint64_t>(info.st_mtim.tv_sec) * kSecondNs +
           static_cast<std::uint64_t>(info.st_mtim.tv_nsec);
}

} // namespace

SavedDisk record_disk(const description::Disk& disk, const block::Drive& drive) {
    return {.size_bytes = drive.size(), .changed_ns = changed_at(disk)};
}

Result<void> check_disk(const SavedDisk& saved, const description::Disk& disk,
                        const block::Drive& drive) {
    const auto now = record_disk(disk, drive);
    if (now.size_bytes != saved.size_bytes)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("disk '{}' has {} bytes, and had {} when the VM was saved",
                                      disk.path, now.size_bytes, saved.size_bytes),
                          "put it back as it was then");
    if (saved.changed_ns != 0 && now.changed_ns != 0 && now.changed_ns != saved.changed_ns)
        return base::fail(
            Errc::InvalidArgument,
            fmt::format("disk '{}' has been written to since the VM was saved, and the guest would "
                        "damage it",
                        disk.path),
            fmt::format("put it back as it was then; a faithful copy gets its time by "
                        "touch -d @{}.{:09} FILE",
                        saved.changed_ns / kSecondNs, saved.changed_ns % kSecondNs));
    return {};
}

} // namespace doppel::vmm
