// SPDX-License-Identifier: Apache-2.0
#include "vmm/io_devices.hpp"

#include <fmt/core.h>

#include "block/file/file_node.hpp"
#include "block/image/open_image.hpp"
#include "block/io/io_context.hpp"
#include "devices/virtio/virtio_blk.hpp"
#include "devices/virtio/virtio_rng.hpp"
#include "vmm/io_worker.hpp"

namespace doppel::vmm {

using base::Result;
using description::Machine;

namespace {

struct OpenDisk {
    description::Disk description;
    std::unique_ptr<IoWorker> worker;
    std::unique_ptr<block::IoContext> context;
    std::unique_ptr<block::Drive> drive;
};

struct Entropy {
    description::Rng description;
    std::unique_ptr<IoWorker> worker;
};

Result<OpenDisk> open_disk(const description::Disk& disk, std::size_t index) {
    OpenDisk open;
    open.description = disk;
    open.worker = DOPPEL_TRY(IoWorker::create(fmt::format("disk{}", index)));
    open.context = DOPPEL_TRY(block::IoContext::create(open.worker->loop()));
    block::ImageOptions options;
    options.format = disk.format;
    options.access = disk.read_only ? block::Access::ReadOnly : block::Access::ReadWrite;
    options.cache = DOPPEL_TRY(block::parse_cache_mode(disk.cache));
    auto drive = block::open_drive(*open.context, disk.path, options);
    if (!drive)
        return std::unexpected(std::move(drive).error().with_context("disk"));
    open.drive = std::move(*drive);
    return open;
}

} // namespace

struct IoDevices::Impl {
    std::vector<OpenDisk> disks;
    std::vector<Entropy> rngs;

    template <typename Visit> void each_worker(Visit&& visit) {
        for (auto& disk : disks)
            visit(*disk.worker);
        for (auto& rng : rngs)
            visit(*rng.worker);
    }
};

IoDevices::IoDevices(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
IoDevices::~IoDevices() = default;

Result<std::unique_ptr<IoDevices>> IoDevices::open(const Machine& machine) {
    auto impl = std::make_unique<Impl>();
    for (const auto& disk : machine.disks)
        impl->disks.push_back(DOPPEL_TRY(open_disk(disk, impl->disks.size())));
    if (machine.rng.present)
        impl->rngs.push_back({machine.rng, DOPPEL_TRY(IoWorker::create("rng"))});
    return std::unique_ptr<IoDevices>{new IoDevices{std::move(impl)}};
}

std::vector<machine::PcVirtio> IoDevices::functions() {
    std::vector<machine::PcVirtio> all;
    for (auto& rng : impl_->rngs)
        all.push_back({"rng", rng.description.address, [&rng](memory::GuestMemory& memory) {
                           return std::make_unique<devices::VirtioRng>(memory, rng.worker->loop());
                       }});
    for (std::size_t i = 0; i < impl_->disks.size(); ++i)
        all.push_back({fmt::format("disk{}", i), impl_->disks[i].description.address,
                       [&disk = impl_->disks[i]](memory::GuestMemory& memory) {
                           return std::make_unique<devices::VirtioBlk>(
                               *disk.drive,
                               devices::VirtioBlk::Options{.serial = disk.description.serial},
                               memory, disk.worker->loop());
                       }});
    return all;
}

void IoDevices::start() {
    impl_->each_worker([](IoWorker& worker) { worker.start(); });
}

Result<void> IoDevices::close() {
    impl_->each_worker([](IoWorker& worker) { worker.stop(); });
    for (auto& disk : impl_->disks)
        if (auto closed = disk.context->wait(disk.drive->close()); !closed)
            return std::unexpected(std::move(closed).error().with_context(
                fmt::format("close disk '{}'", disk.description.path)));
    return {};
}

} // namespace doppel::vmm
