// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Firmware configuration device, ports 510h to 51bh: numbered items and named files that firmware
/// reads from the board. The interface is the one QEMU documents (QEMU 7.2, "QEMU Firmware
/// Configuration (fw_cfg) Device"); SeaBIOS, OVMF and Linux have drivers for it.
/// Modelled: selector, data port, file directory, DMA (read, skip, select).
/// Not modelled: items that the guest writes.
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "bus/io_handler.hpp"
#include "devices/device.hpp"
#include "memory/guest_memory.hpp"

namespace doppel::devices {

/// Any thread; guarded by the device mutex. Items are added before the VM runs.
class FwCfg final : public StatefulDevice<FwCfg>, public bus::IoHandler {
public:
    static constexpr std::uint64_t kPortBytes = 12;
    static constexpr std::size_t kMaxNameBytes = 55;
    enum Key : std::uint16_t { // FW_CFG_… of the interface
        Signature = 0x00,
        Id = 0x01,
        CpuCount = 0x05,
        FileDirectory = 0x19,
        FirstFile = 0x20,
    };

    struct State {
        std::uint16_t selector = 0;
        std::uint32_t offset = 0;
        std::uint32_t dma_high = 0; // upper half of the DMA address, waits for the lower
    };
    static constexpr auto kSchema = state::schema(
        "fw-cfg", 1, state::field(1, "selector", &State::selector),
        state::field(2, "offset", &State::offset), state::field(3, "dma_high", &State::dma_high));

    explicit FwCfg(memory::GuestMemory& memory);

    /// Board only. A file's name is a path ("etc/e820") of at most kMaxNameBytes characters;
    /// errors: InvalidArgument, AlreadyExists.
    base::Result<void> add_file(std::string_view name, std::vector<std::byte> content);
    void set_item(std::uint16_t key, std::vector<std::byte> content);

    void reset() override;
    std::uint64_t io_read(bus::IoAccess io) override;
    void io_write(bus::IoAccess io, std::uint64_t value) override;

private:
    friend StatefulDevice<FwCfg>;
    struct File {
        std::string name;
        std::uint16_t key;
        std::uint32_t size_bytes;
    };
    void rebuild_directory();
    /// What is left of the selected item from `offset` on.
    std::span<const std::byte> rest() const DOPPEL_REQUIRES(mutex_);
    void select(std::uint16_t key) DOPPEL_REQUIRES(mutex_);
    void skip(std::uint32_t bytes) DOPPEL_REQUIRES(mutex_);
    std::uint8_t read_byte() DOPPEL_REQUIRES(mutex_);
    void run_dma(memory::Gpa request) DOPPEL_REQUIRES(mutex_);
    bool transfer(std::uint32_t control, std::uint32_t length_bytes, memory::Gpa to)
        DOPPEL_REQUIRES(mutex_);

    memory::GuestMemory& memory_; // owned by the Machine
    std::map<std::uint16_t, std::vector<std::byte>> items_;
    std::vector<File> files_;
    State state_ DOPPEL_GUARDED_BY(mutex_);
};

} // namespace doppel::devices
