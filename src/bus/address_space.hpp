// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Maps ranges of port or physical addresses to IoHandlers. Lookups are lock-free in an immutable
/// sorted table behind an atomic pointer; map() and unmap() build a new table and swap it in.
///
/// Old tables are freed once no reader that might have seen them is inside: two counters, readers
/// take the one that is current, a writer retires a table under the other parity (the idea of
/// sleepable RCU). So a guest that moves a BAR in a loop does not grow us, and a handler may call
/// map() and unmap() from inside an access.
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.hpp"
#include "base/result.hpp"
#include "bus/doorbell.hpp"
#include "bus/io_handler.hpp"

namespace doppel::bus {

struct Mapping {
    std::uint64_t base = 0;
    std::uint64_t size = 0;
    std::string name; // for logs, traces and error texts
    AccessRules rules;
    IoHandler* handler = nullptr;         // owned by the Machine; unmapped before it dies
    const Doorbells* doorbells = nullptr; // null: none; the handler's owner has them
};

/// Any thread.
class AddressSpace {
public:
    enum class Kind : std::uint8_t { Pio, Mmio };

    explicit AddressSpace(Kind kind);
    ~AddressSpace();
    AddressSpace(const AddressSpace&) = delete;
    AddressSpace& operator=(const AddressSpace&) = delete;

    /// Errors: AlreadyExists when it overlaps another mapping, InvalidArgument when empty.
    base::Result<void> map(Mapping mapping);
    /// Removes the mapping that starts at `base`; nothing happens when there is none.
    void unmap(std::uint64_t base);

    /// Who hangs the doorbells of what is mapped, now and later; null: nobody any more. Outlives
    /// the mappings. Before the vCPUs run.
    void set_doorbell_host(DoorbellHost* host);

    /// `size` 1, 2, 4 or 8 bytes. Where nothing answers: all ones of that size, counted and logged
    /// a few times.
    std::uint64_t read(std::uint64_t address, std::uint8_t size);
    void write(std::uint64_t address, std::uint8_t size, std::uint64_t value);

    bool is_mapped(std::uint64_t address) const;
    std::vector<Mapping> mappings() const;
    std::uint64_t accesses() const { return accesses_.load(std::memory_order_relaxed); }

private:
    struct Table;
    class Reader;
    const Mapping* find(const Table& table, std::uint64_t address) const;
    std::uint64_t read_mapped(const Mapping& mapping, std::uint64_t offset, std::uint8_t size);
    void write_mapped(const Mapping& mapping, std::uint64_t offset, std::uint8_t size,
                      std::uint64_t value);
    void replace(std::unique_ptr<const Table> next) DOPPEL_REQUIRES(mutex_);
    void free_unreachable() DOPPEL_REQUIRES(mutex_);
    void hang(const Mapping& mapping) DOPPEL_REQUIRES(mutex_);
    void take_down(const Mapping& mapping) DOPPEL_REQUIRES(mutex_);
    void report_unmapped(const char* what, std::uint64_t address, std::uint8_t size);

    const Kind kind_;
    std::atomic<const Table*> table_;
    mutable std::atomic<std::uint32_t> parity_{0};
    mutable std::atomic<std::uint32_t> readers_[2] = {0, 0};
    std::atomic<std::uint64_t> accesses_{0};
    std::atomic<std::uint32_t> unmapped_reports_{0};
    mutable base::Mutex mutex_;
    DoorbellHost* doorbell_host_ DOPPEL_GUARDED_BY(mutex_) = nullptr;
    std::unique_ptr<const Table> current_ DOPPEL_GUARDED_BY(mutex_);
    std::vector<std::unique_ptr<const Table>> retired_[2] DOPPEL_GUARDED_BY(mutex_);
};

} // namespace doppel::bus
