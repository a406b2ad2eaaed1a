// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Guest RAM: a sealed memfd mapped once, by guest-physical address.
///
/// RAM is shared with an adversary: devices copy each field out once and then use the copy. Only
/// CPU engines may hold host addresses of it (engine_page()).
///
/// Every page has a state byte that says what a write to it must still do:
///   kPageClean   dirty logging runs and the page has not been written since the last harvest
///   kPageCode    translated code was made from the page: its owner must be told (CodeWatcher)
/// A page whose byte is 0 may be written without ceremony; engines cache write permission only for
/// such pages, and drop it when a bit is set (the engine's own handshake, while logging: a pause).
///
/// Any thread, unless a function says otherwise.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "memory/gpa.hpp"

namespace doppel::memory {

/// Told about writes to pages marked kPageCode, by whichever thread writes, *before* the bytes
/// change when `moment` is Before and after them when it is After. Set by the translator.
class CodeWatcher {
public:
    enum class Moment : std::uint8_t { Before, After };
    virtual ~CodeWatcher() = default;
    virtual void on_code_write(Gpa gpa, std::uint64_t length_bytes, Moment moment) noexcept = 0;
};

class GuestMemory;

/// Keeps account of writes that GuestMemory does not see: those of hardware virtualization. Control
/// thread, vCPUs stopped. A failure must err on the side of "written".
class WriteLog {
public:
    virtual ~WriteLog() = default;
    virtual void start() noexcept = 0;
    virtual void stop() noexcept = 0;
    /// Hands what was written since the last call to GuestMemory::note_engine_writes().
    virtual void collect(GuestMemory& memory) noexcept = 0;
};

struct RamRegion {
    Gpa base;
    std::uint64_t size_bytes = 0; // multiple of the page size
};

class GuestMemory {
public:
    using PageState = std::uint8_t;
    static constexpr PageState kPageClean = 1;
    static constexpr PageState kPageCode = 2;

    /// Regions must be page-aligned, ascending and disjoint. Errors: InvalidArgument, OutOfMemory.
    static base::Result<std::unique_ptr<GuestMemory>> create(std::span<const RamRegion> regions);
    ~GuestMemory();
    GuestMemory(const GuestMemory&) = delete;
    GuestMemory& operator=(const GuestMemory&) = delete;

    std::span<const RamRegion> regions() const { return regions_; }
    std::uint64_t size_bytes() const { return size_bytes_; }
    /// Exclusive end of the highest region.
    Gpa end() const;
    /// True when all of [gpa, gpa + length) is RAM; overflow-safe.
    bool contains(Gpa gpa, std::uint64_t length_bytes) const noexcept;

    /// Copies; false (and nothing done) when any byte is not RAM.
    [[nodiscard]] bool read(Gpa gpa, std::span<std::byte> to) const noexcept;
    [[nodiscard]] bool write(Gpa gpa, std::span<const std::byte> from) noexcept;
    [[nodiscard]] bool fill(Gpa gpa, std::uint64_t length_bytes, std::byte value) noexcept;

    template <typename T> std::optional<T> load(Gpa gpa) const noexcept {
        static_assert(std::is_trivially_copyable_v<T>);
        T value;
        if (!read(gpa, std::as_writable_bytes(std::span{&value, 1})))
            return std::nullopt;
        return value;
    }
    template <typename T> [[nodiscard]] bool store(Gpa gpa, const T& value) noexcept {
        static_assert(std::is_trivially_copyable_v<T>);
        return write(gpa, std::as_bytes(std::span{&value, 1}));
    }

    // --- RAM as one range of bytes, its regions in order: what is saved and sent ---

    /// As read() and write(), by offset into that range.
    [[nodiscard]] bool read_linear(std::uint64_t offset, std::span<std::byte> to) const noexcept;
    [[nodiscard]] bool write_linear(std::uint64_t offset, std::span<const std::byte> from) noexcept;
    /// The first offset not below `offset` where anything was ever written, or size_bytes(): all
    /// between is zero.
    std::uint64_t next_used(std::uint64_t offset) const noexcept;

    // --- for CPU engines ---

    /// Host address of a RAM page, nullptr when the page is not RAM. Engines only; the address is
    /// good as long as this object lives. Writers through it must honour page_state().
    std::byte* engine_page(Gpa page) const noexcept;
    PageState page_state(Gpa page) const noexcept;
    /// Regions with their host memory and state bytes (one per page), for an engine's own lookup.
    struct EngineRegion {
        Gpa base;
        std::uint64_t size_bytes;
        std::byte* host;
        const std::atomic<PageState>* states;
    };
    std::vector<EngineRegion> engine_regions() const;
    /// Does what the page's state demands before an engine writes [gpa, gpa + length) itself (one
    /// page at most): marks it dirty, tells the CodeWatcher. After the bytes have changed the
    /// engine calls finish_engine_write() if this returned true.
    [[nodiscard]] bool prepare_engine_write(Gpa gpa, std::uint64_t length_bytes) noexcept;
    void finish_engine_write(Gpa gpa, std::uint64_t length_bytes) noexcept;
    void set_code_page(Gpa page, bool has_code) noexcept;
    /// At most one watcher; set before vCPUs run.
    void set_code_watcher(CodeWatcher* watcher) noexcept { watcher_ = watcher; }
    /// The same for the log of an engine whose guest writes RAM without us; null: there is none.
    void set_write_log(WriteLog* log) noexcept { write_log_ = log; }
    /// WriteLog::collect(): bit i of word i / 64 is page i of the region that begins at `region`.
    void note_engine_writes(Gpa region, std::span<const std::uint64_t> bits) noexcept;

    // --- dirty log; the VM is paused, control thread only ---

    void start_dirty_log();
    void stop_dirty_log();
    /// One bit per RAM page in order of the regions (bit i of word i / 64), set when the page was
    /// written since the last call; starts a new round. Engines drop cached write permission then.
    std::vector<std::uint64_t> harvest_dirty_log();

    /// The memfd behind the regions: region i starts at the sum of the sizes before it.
    int fd() const { return fd_.get(); }

private:
    friend class PinnedBuffer; // guest_ranges.hpp
    GuestMemory() = default;
    struct Place {
        std::byte* host;
        std::uint64_t page_index; // among all RAM pages
        std::uint64_t left_bytes; // to the end of the region
    };
    std::optional<Place> find(Gpa gpa) const noexcept;
    template <typename Part>
    bool by_region(std::uint64_t offset, std::uint64_t length, Part&& part) const;
    template <typename Copy> bool walk(Gpa gpa, std::uint64_t length_bytes, Copy&& copy) const;
    void finish_device_write(Gpa gpa, std::uint64_t length_bytes, bool watched) noexcept;
    void mark_dirty(std::uint64_t page_index) noexcept;

    std::vector<RamRegion> regions_;
    std::vector<std::uint64_t> region_offsets_; // into the memfd, bytes
    std::uint64_t size_bytes_ = 0;
    base::UniqueFd fd_;
    std::byte* mapping_ = nullptr;
    std::unique_ptr<std::atomic<PageState>[]> page_states_;
    std::unique_ptr<std::atomic<std::uint64_t>[]> dirty_; // bit set: written in this round
    CodeWatcher* watcher_ = nullptr;                      // owned by the engine, outlives the vCPUs
    WriteLog* write_log_ = nullptr;                       // the same
    bool is_logging_ = false;                             // control thread
};

} // namespace doppel::memory
