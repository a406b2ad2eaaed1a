// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What code that runs with the guest's vector registers live may ask of the world of ordinary C++
/// (devices, interrupt controller, dirty log). The system layer calls nothing else outside itself,
/// so an engine that keeps guest state in host registers puts its saving and restoring here.
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "cpu/rendezvous.hpp"
#include "cpu/write_marks.hpp"
#include "cpu/x86/board_ports.hpp"

namespace doppel::cpu::x86 {

/// Some 100 us of spinning, longer than a lock is held by one who runs: a yield may cost a time
/// slice of the host.
inline constexpr std::uint32_t kPausesBetweenYields = 4096;

/// vCPU thread only.
class BoardAccess {
public:
    // `size` is 1, 2, 4 or 8; never RAM. The local APIC page is found here, too.
    virtual std::uint64_t mmio_read(std::uint64_t gpa, std::uint8_t size) noexcept = 0;
    virtual void mmio_write(std::uint64_t gpa, std::uint8_t size, std::uint64_t value) noexcept = 0;
    virtual std::uint64_t pio_read(std::uint16_t port, std::uint8_t size) noexcept = 0;
    virtual void pio_write(std::uint16_t port, std::uint8_t size, std::uint64_t value) noexcept = 0;

    /// GuestMemory::prepare_engine_write() and finish_engine_write().
    virtual bool prepare_ram_write(std::uint64_t gpa, std::uint64_t bytes) noexcept = 0;
    virtual void finish_ram_write(std::uint64_t gpa, std::uint64_t bytes) noexcept = 0;
    /// Calls work(argument) while no other vCPU of the VM executes anything.
    virtual void exclusive(void (*work)(void*), void* argument) noexcept = 0;

    /// MSRs of the interrupt controller, then those of the board; false is #GP(0).
    virtual bool read_msr(std::uint32_t index, std::uint64_t& value) noexcept = 0;
    virtual bool write_msr(std::uint32_t index, std::uint64_t value) noexcept = 0;
    virtual std::uint8_t cr8() noexcept = 0;
    virtual void set_cr8(std::uint8_t value) noexcept = 0;

    virtual bool intr_pending() noexcept = 0;
    /// Vector 0..255, or -1 when the interrupt went away.
    virtual int acknowledge_intr() noexcept = 0;
    virtual CpuEvent take_event(bool nmi_blocked, bool wait_for_sipi,
                                std::uint8_t& sipi_vector) noexcept = 0;
    virtual void init_interrupts() noexcept = 0;
    /// TscSource::read().
    virtual std::uint64_t tsc() noexcept = 0;
    /// EntropySource::next() of a vCPU that has one.
    virtual bool random(std::uint64_t& value) noexcept = 0;
    /// The guest waits for another vCPU, which may wait for a host CPU: lets others have this one.
    virtual void yield() noexcept = 0;

protected:
    ~BoardAccess() = default;
};

/// Guest RAM as engines see it: host address and state byte (GuestMemory::page_state()) of a page
/// without a call. Copied once per vCPU; RAM regions never change.
struct RamView {
    using State = std::atomic<std::uint8_t>; // of a page, GuestMemory::page_state()
    struct Region {
        std::uint64_t base = 0;
        std::uint64_t size_bytes = 0;
        std::byte* host = nullptr;
        const State* states = nullptr; // one per page
    };
    static constexpr std::size_t kMaxRegions = 8;
    std::array<Region, kMaxRegions> regions{};
    std::size_t count = 0;
    WriteMarks* marks = nullptr; // of the vCPU, which owns them; null: nobody asks

    [[gnu::always_inline]] const Region* find(std::uint64_t gpa) const {
        if (gpa - regions[0].base < regions[0].size_bytes) [[likely]] // size 0 when there is none
            return &regions[0];
        for (std::size_t i = 1; i < count; ++i)
            if (gpa - regions[i].base < regions[i].size_bytes)
                return &regions[i];
        return nullptr;
    }
    /// Host address of the byte at `gpa`, nullptr when it is not RAM.
    [[gnu::always_inline]] std::byte* host(std::uint64_t gpa) const {
        const Region* region = find(gpa);
        return region == nullptr ? nullptr : region->host + (gpa - region->base);
    }

    /// Of the page of RAM at `gpa`.
    const State& state(std::uint64_t gpa) const {
        const Region& region = *find(gpa);
        return region.states[(gpa - region.base) >> 12];
    }
    /// Of a page, by its state byte: those of all regions stand in one array.
    std::uint64_t page_number(const State& state) const {
        return static_cast<std::uint64_t>(&state - regions[0].states);
    }
    /// Before `state` is looked at for a store. True: unmark_writer() behind it, unless the vCPU
    /// keeps a write permission.
    [[gnu::always_inline]] bool mark_writer(const State& state) const {
        return marks != nullptr && marks->set(page_number(state));
    }
    void unmark_writer(const State& state) const { marks->clear(page_number(state)); }
    /// Whether stores to the page need no ceremony. If so, others know from now on.
    bool may_keep_writing(const State& state) const {
        const bool marked = mark_writer(state);
        if (state.load(std::memory_order_acquire) == 0)
            return true;
        if (marked)
            unmark_writer(state);
        return false;
    }
};

RamView view_of(const memory::GuestMemory& memory);

/// BoardAccess straight to what the vCPU is wired to.
class WiredBoard final : public BoardAccess {
public:
    explicit WiredBoard(const VcpuWiring& wiring) : wiring_{wiring} {}
    /// Where this vCPU, `self`, meets the VM's other ones, if there are any.
    void set_others(Rendezvous& others, Rendezvous::Participant& self) {
        others_ = &others;
        self_ = &self;
    }

    std::uint64_t mmio_read(std::uint64_t gpa, std::uint8_t size) noexcept override;
    void mmio_write(std::uint64_t gpa, std::uint8_t size, std::uint64_t value) noexcept override;
    std::uint64_t pio_read(std::uint16_t port, std::uint8_t size) noexcept override;
    void pio_write(std::uint16_t port, std::uint8_t size, std::uint64_t value) noexcept override;
    bool prepare_ram_write(std::uint64_t gpa, std::uint64_t bytes) noexcept override;
    void finish_ram_write(std::uint64_t gpa, std::uint64_t bytes) noexcept override;
    void exclusive(void (*work)(void*), void* argument) noexcept override;
    bool read_msr(std::uint32_t index, std::uint64_t& value) noexcept override;
    bool write_msr(std::uint32_t index, std::uint64_t value) noexcept override;
    std::uint8_t cr8() noexcept override;
    void set_cr8(std::uint8_t value) noexcept override;
    bool intr_pending() noexcept override;
    int acknowledge_intr() noexcept override;
    CpuEvent take_event(bool nmi_blocked, bool wait_for_sipi,
                        std::uint8_t& sipi_vector) noexcept override;
    void init_interrupts() noexcept override;
    std::uint64_t tsc() noexcept override;
    bool random(std::uint64_t& value) noexcept override;
    void yield() noexcept override;

    std::uint64_t mmio_accesses() const { return mmio_accesses_; }
    std::uint64_t pio_accesses() const { return pio_accesses_; }

private:
    VcpuWiring wiring_;            // what it points to is owned by the Machine
    Rendezvous* others_ = nullptr; // owned by the engine
    Rendezvous::Participant* self_ = nullptr;
    std::uint64_t mmio_accesses_ = 0;
    std::uint64_t pio_accesses_ = 0;
};

} // namespace doppel::cpu::x86
