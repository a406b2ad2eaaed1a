// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Block device (Virtual I/O Device 1.2 §5.2) on a block::Drive, straight between guest memory and
/// the image. Any number of requests are in flight; they complete in any order.
/// Modelled: read, write, flush, discard, write zeroes, serial number, topology, write cache mode.
/// Not modelled: several queues, secure erase, zones, life time.
#include <memory>
#include <string>
#include <vector>

#include "block/drive.hpp"
#include "devices/virtio/virtio_device.hpp"

namespace doppel::devices {

/// Any thread, except that the drive belongs to the worker's: it lives as long as the worker runs.
class VirtioBlk final : public StatefulVirtioDevice<VirtioBlk> {
public:
    struct State {
        bool writeback = true; // writes wait for the driver's flush
        static constexpr std::size_t kSerialBytes = 20;
    };
    static constexpr auto kSchema =
        state::schema("virtio-blk", 1, state::field(1, "writeback", &State::writeback));

    struct Options {
        std::string serial; // at most State::kSerialBytes characters
    };

    VirtioBlk(block::Drive& drive, Options options, memory::GuestMemory& memory,
              base::EventLoop& worker);
    ~VirtioBlk() override;

private:
    friend StatefulVirtioDevice<VirtioBlk>;
    struct Request;

    Serve serve_queue(unsigned index) override;
    void config_bytes(std::vector<std::byte>& out) const override;
    void config_written(std::uint32_t offset, std::uint8_t size, std::uint64_t value) override;

    Request& take_request();
    void begin(Request& request);
    void read(Request& request, std::uint64_t sector);
    void write(Request& request, std::uint64_t sector);
    void get_id(Request& request);
    void change_ranges(Request& request, std::uint32_t type);
    void one_step_done(Request& request, const base::Result<void>& result);
    void finish(Request& request, std::uint8_t status);
    block::Durability durability() const;

    block::Drive& drive_; // owned by the machine's owner
    const Options options_;
    std::vector<std::unique_ptr<Request>> requests_; // all there are
    std::vector<Request*> free_;
    bool is_serving_ = false; // on the worker, with the lock held
    State state_;
};

} // namespace doppel::devices
