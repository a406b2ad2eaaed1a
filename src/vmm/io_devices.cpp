// SPDX-License-Identifier: Apache-2.0
#include "vmm/io_devices.hpp"

#include <condition_variable>
#include <mutex>

#include <fmt/core.h>

#include "block/crypto/secret_file.hpp"
#include "block/file/file_node.hpp"
#include "block/filter/throttle_node.hpp"
#include "block/image/open_image.hpp"
#include "block/io/io_context.hpp"
#include "description/network.hpp"
#include "devices/virtio/virtio_blk.hpp"
#include "devices/virtio/virtio_console.hpp"
#include "devices/virtio/virtio_net.hpp"
#include "devices/virtio/virtio_rng.hpp"
#include "net/user/user_network.hpp"
#include "vmm/disk_record.hpp"
#include "vmm/io_worker.hpp"

namespace doppel::vmm {

using base::Result;
using description::Machine;

namespace {

struct OpenDisk {
    description::Disk description;
    std::unique_ptr<IoWorker> worker;
    std::unique_ptr<block::IoContext> context;
    std::unique_ptr<block::filter::ThrottleGroup> limits; // null: none
    std::unique_ptr<block::Drive> drive;
};

struct OpenNet {
    description::Net description;
    std::unique_ptr<IoWorker> worker;
    std::unique_ptr<net::Backend> backend;
};

struct Console {
    description::VirtioConsole description;
    chardev::Backend* backend;
    std::unique_ptr<IoWorker> worker;
};

struct Entropy {
    description::Rng description;
    std::unique_ptr<IoWorker> worker;
};

block::crypto::SecretFiles secrets_of(const Machine& machine) {
    std::map<std::string, block::crypto::SecretFiles::File> files;
    for (const auto& secret : machine.secrets)
        files[secret.id] = {secret.file, secret.format == "base64"};
    return block::crypto::SecretFiles{std::move(files)};
}

Result<OpenDisk> open_disk(const description::Disk& disk, const block::SecretSource& secrets,
                           std::size_t index) {
    OpenDisk open;
    open.description = disk;
    open.worker = DOPPEL_TRY(IoWorker::create(fmt::format("disk{}", index)));
    open.context = DOPPEL_TRY(block::IoContext::create(open.worker->loop()));
    block::ImageOptions options;
    options.format = disk.format;
    options.access = disk.read_only ? block::Access::ReadOnly : block::Access::ReadWrite;
    options.cache = DOPPEL_TRY(block::parse_cache_mode(disk.cache));
    options.driver = disk.options;
    options.secrets = &secrets;
    auto node = block::open_for_guest(*open.context, disk.path, options);
    if (!node)
        return std::unexpected(std::move(node).error().with_context("disk"));
    if (!disk.limits.empty()) {
        open.limits = DOPPEL_TRY(block::filter::ThrottleGroup::create(disk.limits));
        node = std::make_unique<block::filter::ThrottleNode>(*open.context, std::move(*node),
                                                             *open.limits);
    }
    open.drive = std::make_unique<block::Drive>(std::move(*node));
    return open;
}

Result<net::UserOptions> user_options(const description::Net& net) {
    net::UserOptions options;
    const auto subnet = DOPPEL_TRY(description::parse_subnet(net.subnet));
    options.network = subnet.base;
    options.mask = subnet.mask();
    options.hostname = net.hostname;
    options.mtu = static_cast<std::uint16_t>(net.mtu);
    options.has_ipv6 = net.ipv6;
    options.restricted = net.restricted;
    for (const auto& text : net.forwards) {
        const auto forward = DOPPEL_TRY(description::parse_forward(text));
        const bool is_udp = forward.protocol == description::Forward::Protocol::Udp;
        options.forwards.push_back(
            {is_udp ? net::Forward::Protocol::Udp : net::Forward::Protocol::Tcp,
             forward.host_address, forward.host_port, forward.guest_address, forward.guest_port});
    }
    return options;
}

Result<OpenNet> open_net(const description::Net& net, std::size_t index) {
    OpenNet open;
    open.description = net;
    open.worker = DOPPEL_TRY(IoWorker::create(fmt::format("net{}", index)));
    auto network = net::UserNetwork::create(open.worker->loop(), DOPPEL_TRY(user_options(net)));
    if (!network)
        return std::unexpected(std::move(network).error().with_context("network"));
    open.backend = std::move(*network);
    return open;
}

std::unique_ptr<devices::VirtioDevice> make_net(OpenNet& net, memory::GuestMemory& memory) {
    devices::VirtioNet::Options options;
    options.mac = description::parse_mac(net.description.mac).value(); // validated
    options.mtu = static_cast<std::uint16_t>(net.description.mtu);
    return std::make_unique<devices::VirtioNet>(*net.backend, options, memory, net.worker->loop());
}

} // namespace

struct IoDevices::Impl {
    block::crypto::SecretFiles secrets;
    std::vector<OpenDisk> disks;
    std::vector<OpenNet> nets;
    std::vector<Entropy> rngs;
    std::vector<Console> consoles;
    bool is_unused = true; // neither started nor closed

    template <typename Visit> void each_worker(Visit&& visit) {
        for (auto& disk : disks)
            visit(*disk.worker);
        for (auto& net : nets)
            visit(*net.worker);
        for (auto& rng : rngs)
            visit(*rng.worker);
        for (auto& console : consoles)
            visit(*console.worker);
    }
};

IoDevices::IoDevices(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}

/// A VM that did not come to run: bitmaps of its disks are marked as in use until they are closed.
IoDevices::~IoDevices() {
    if (impl_->is_unused)
        (void)close(); // there is another error to tell
}

Result<std::unique_ptr<IoDevices>> IoDevices::open(const Machine& machine,
                                                   chardev::Backend* console) {
    std::unique_ptr<IoDevices> io{new IoDevices{std::make_unique<Impl>(secrets_of(machine))}};
    const auto& impl = io->impl_;
    for (const auto& disk : machine.disks)
        impl->disks.push_back(DOPPEL_TRY(open_disk(disk, impl->secrets, impl->disks.size())));
    for (const auto& net : machine.nets)
        impl->nets.push_back(DOPPEL_TRY(open_net(net, impl->nets.size())));
    if (machine.rng.present)
        impl->rngs.push_back({machine.rng, DOPPEL_TRY(IoWorker::create("rng"))});
    if (machine.virtio_console.present)
        impl->consoles.push_back(
            {machine.virtio_console, console, DOPPEL_TRY(IoWorker::create("console"))});
    return io;
}

std::vector<machine::PcVirtio> IoDevices::functions() {
    std::vector<machine::PcVirtio> all;
    for (auto& rng : impl_->rngs)
        all.push_back({"rng", rng.description.address, [&rng](memory::GuestMemory& memory) {
                           return std::make_unique<devices::VirtioRng>(memory, rng.worker->loop());
                       }});
    for (auto& console : impl_->consoles)
        all.push_back(
            {"console", console.description.address, [&console](memory::GuestMemory& memory) {
                 return std::make_unique<devices::VirtioConsole>(*console.backend, memory,
                                                                 console.worker->loop());
             }});
    for (std::size_t i = 0; i < impl_->nets.size(); ++i)
        all.push_back({fmt::format("net{}", i), impl_->nets[i].description.address,
                       [&net = impl_->nets[i]](memory::GuestMemory& memory) {
                           return make_net(net, memory);
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
    impl_->is_unused = false;
    impl_->each_worker([](IoWorker& worker) { worker.start(); });
}

std::vector<SavedDisk> IoDevices::record_disks() const {
    std::vector<SavedDisk> all;
    for (const auto& disk : impl_->disks)
        all.push_back(record_disk(disk.description, *disk.drive));
    return all;
}

Result<void> IoDevices::check_disks(const std::vector<SavedDisk>& saved) const {
    if (saved.empty())
        return {};
    if (saved.size() != impl_->disks.size())
        return base::fail(base::Errc::Corrupt,
                          fmt::format("{} disks were saved, the machine has {}", saved.size(),
                                      impl_->disks.size()));
    for (std::size_t i = 0; i < saved.size(); ++i)
        DOPPEL_TRY_VOID(check_disk(saved[i], impl_->disks[i].description, *impl_->disks[i].drive));
    return {};
}

Result<void> IoDevices::flush() {
    struct Flushes {
        std::mutex mutex;
        std::condition_variable changed;
        std::size_t left = 0; // these: guarded by mutex
        Result<void> all;
    };
    Flushes flushes;
    const auto ended = [&flushes](const std::string& path, Result<void> result) {
        const std::scoped_lock lock{flushes.mutex};
        if (!result && flushes.all)
            flushes.all = std::unexpected(
                std::move(result).error().with_context(fmt::format("flush disk '{}'", path)));
        if (--flushes.left == 0)
            flushes.changed.notify_one(); // with the lock: it is gone as soon as the waiter has it
    };
    std::unique_lock lock{flushes.mutex};
    for (auto& disk : impl_->disks) {
        if (disk.drive->read_only())
            continue;
        ++flushes.left;
        disk.worker->loop().post([&disk, &ended] {
            disk.drive->flush([&disk, &ended](Result<void> result) {
                ended(disk.description.path, std::move(result));
            });
        });
    }
    flushes.changed.wait(lock, [&flushes] { return flushes.left == 0; });
    return std::move(flushes.all);
}

Result<void> IoDevices::close() {
    impl_->is_unused = false;
    impl_->each_worker([](IoWorker& worker) { worker.stop(); });
    Result<void> all; // the first error; the other disks are closed all the same
    for (auto& disk : impl_->disks)
        if (auto closed = disk.context->wait(disk.drive->close()); !closed && all)
            all = std::unexpected(std::move(closed).error().with_context(
                fmt::format("close disk '{}'", disk.description.path)));
    return all;
}

} // namespace doppel::vmm
