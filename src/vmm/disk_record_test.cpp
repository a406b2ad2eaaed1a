// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/stat.h>

#include <array>

#include "base/test_folder.hpp"
#include "base/unique_fd.hpp"
#include "block/memory/memory_node.hpp"
#include "vmm/disk_record.hpp"

using namespace doppel;
using namespace doppel::vmm;

namespace {

struct Rig {
    base::TestFolder folder{"doppel-disk"};
    std::string path = folder / "disk";
    base::UniqueFd fd{::open(path.c_str(), O_RDWR | O_CREAT, 0600)};
    description::Disk disk = [this] {
        description::Disk one;
        one.path = path;
        return one;
    }();
    block::Drive drive{std::make_unique<block::MemoryNode>(std::vector<std::byte>(8192))};

    std::string why_not(const SavedDisk& saved) {
        const auto checked = check_disk(saved, disk, drive);
        return checked ? "" : checked.error().message();
    }
    void set_time(std::int64_t seconds, std::int64_t nanoseconds) {
        const std::array<timespec, 2> times{{{.tv_sec = seconds, .tv_nsec = nanoseconds},
                                             {.tv_sec = seconds, .tv_nsec = nanoseconds}}};
        REQUIRE(::futimens(fd.get(), times.data()) == 0);
    }
};

} // namespace

TEST_CASE_FIXTURE(Rig, "a disk that is as it was is taken") {
    const auto saved = record_disk(disk, drive);
    CHECK(saved.size_bytes == 8192);
    CHECK(saved.changed_ns != 0);
    CHECK(why_not(saved).empty());
}

TEST_CASE_FIXTURE(Rig, "a disk of another size is refused, and named") {
    auto saved = record_disk(disk, drive);
    saved.size_bytes = 4096;
    const auto why = why_not(saved);
    CHECK(why.find(path + "' has 8192 bytes, and had 4096") != std::string::npos);
}

TEST_CASE_FIXTURE(Rig, "a disk that was written to is refused until it has its time again") {
    set_time(1'700'000'000, 12'345);
    const auto saved = record_disk(disk, drive);
    set_time(1'700'000'001, 12'345);
    CHECK(why_not(saved).find("touch -d @1700000000.000012345 ") != std::string::npos);
    set_time(1'700'000'000, 12'345);
    CHECK(why_not(saved).empty());
}

TEST_CASE_FIXTURE(Rig, "formats that are written to on closing have no time") {
    disk.format = "qcow2";
    CHECK(record_disk(disk, drive).changed_ns == 0);
    disk.format = "raw";
    auto saved = record_disk(disk, drive);
    saved.changed_ns = 0; // as it is saved of a device
    CHECK(why_not(saved).empty());
}
