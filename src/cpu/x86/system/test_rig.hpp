// SPDX-License-Identifier: Apache-2.0
#pragma once
/// For this folder's tests: a vCPU with 16 MiB of RAM, a board that records, and helpers that write
/// page tables and descriptors by hand.
#include <cstring>
#include <initializer_list>
#include <map>
#include <memory>

#include "cpu/x86/system/system.hpp"

namespace doppel::cpu::x86::test {

class FakeBoard final : public BoardAccess {
public:
    explicit FakeBoard(memory::GuestMemory& memory) : memory_{memory} {}
    std::uint64_t mmio_read(std::uint64_t gpa, std::uint8_t size) noexcept override {
        mmio_reads += 1;
        return 0x1122'3344'5566'7788 + gpa * 0 + size * 0;
    }
    void mmio_write(std::uint64_t gpa, std::uint8_t, std::uint64_t value) noexcept override {
        mmio[gpa] = value;
    }
    std::uint64_t pio_read(std::uint16_t port, std::uint8_t) noexcept override { return port; }
    void pio_write(std::uint16_t port, std::uint8_t, std::uint64_t value) noexcept override {
        pio[port] = value;
    }
    bool prepare_ram_write(std::uint64_t gpa, std::uint64_t bytes) noexcept override {
        return memory_.prepare_engine_write({gpa}, bytes);
    }
    void finish_ram_write(std::uint64_t gpa, std::uint64_t bytes) noexcept override {
        memory_.finish_engine_write({gpa}, bytes);
    }
    void exclusive(void (*work)(void*), void* argument) noexcept override {
        ++exclusives;
        work(argument);
    }
    bool read_msr(std::uint32_t index, std::uint64_t& value) noexcept override {
        value = apic_base;
        return index == 0x1b;
    }
    bool write_msr(std::uint32_t index, std::uint64_t) noexcept override {
        last_msr_written = index;
        return index == 0x1b;
    }
    std::uint8_t cr8() noexcept override { return tpr; }
    void set_cr8(std::uint8_t value) noexcept override { tpr = value; }
    bool intr_pending() noexcept override { return vector >= 0; }
    int acknowledge_intr() noexcept override { return std::exchange(vector, -1); }
    CpuEvent take_event(bool nmi_blocked, bool, std::uint8_t& sipi) noexcept override {
        sipi = sipi_vector;
        if (event == CpuEvent::Nmi && nmi_blocked)
            return CpuEvent::None;
        return std::exchange(event, std::exchange(next_event, CpuEvent::None));
    }
    void init_interrupts() noexcept override { ++inits; }
    std::uint64_t tsc() noexcept override { return ticks; }
    bool random(std::uint64_t& value) noexcept override {
        value = ++ticks;
        return true;
    }
    void yield() noexcept override {}

    std::map<std::uint64_t, std::uint64_t> mmio;
    std::map<std::uint16_t, std::uint64_t> pio;
    unsigned mmio_reads = 0, inits = 0, exclusives = 0;
    int vector = -1;
    CpuEvent event = CpuEvent::None, next_event = CpuEvent::None;
    std::uint8_t tpr = 0, sipi_vector = 0;
    std::uint64_t ticks = 1000, apic_base = 0xfee00900;
    std::uint32_t last_msr_written = 0;

private:
    memory::GuestMemory& memory_;
};

struct FakeTsc final : TscSource {
    std::uint64_t read() const noexcept override { return 0; }
    std::uint64_t frequency_hz() const noexcept override { return 1'000'000'000; }
    bool is_host_tsc(std::uint64_t&) const noexcept override { return false; }
};

inline std::unique_ptr<memory::GuestMemory> make_memory() {
    const memory::RamRegion region{{0}, 16 << 20};
    return memory::GuestMemory::create({&region, 1}).value();
}

// Entry bits of page tables.
inline constexpr std::uint64_t P = 1, RW = 2, US = 4, A = 0x20, D = 0x40, PS = 0x80, G = 0x100,
                               NX = 1ull << 63;

/// Addresses of tables in guest RAM.
inline constexpr std::uint64_t kPml4 = 0x1000, kPdpt = 0x2000, kPd = 0x3000, kPt = 0x4000,
                               kGdt = 0x6000, kIdt = 0x7000, kTss = 0x8000, kLdt = 0x9000,
                               kStack0 = 0xc000, kStack3 = 0xe000, kCode = 0x10000;
/// GDT selectors that protect() installs.
enum : std::uint16_t {
    kCode0 = 0x08,
    kData0 = 0x10,
    kCode3 = 0x18,
    kData3 = 0x20,
    kCode64 = 0x28,
    kCode64User = 0x38,
    kTssSelector = 0x40,
    kLdtSelector = 0x50,
    kFree = 0x60 // and up: for the test
};

struct Rig {
    std::unique_ptr<memory::GuestMemory> memory = make_memory();
    FakeBoard board{*memory};
    FakeTsc tsc;
    description::CpuModel model;
    CpuState state;
    std::unique_ptr<SystemContext> cx;

    explicit Rig(const char* name = "x86-64-v3")
        : model{description::find_cpu_model(name).value()} {
        VcpuWiring wiring;
        wiring.memory = memory.get();
        wiring.tsc = &tsc;
        wiring.model = &model;
        cx.reset(new SystemContext(make_context(state, board, wiring, 1)));
        reset(*cx, Bootstrap::Yes);
        cx->changes = 0;
    }

    template <typename T> void put(std::uint64_t gpa, T value) {
        if (!memory->store(memory::Gpa{gpa}, value))
            FAIL("the test writes outside RAM");
    }
    template <typename T> T get(std::uint64_t gpa) {
        return memory->load<T>(memory::Gpa{gpa}).value();
    }
    void put64(std::uint64_t gpa, std::uint64_t value) { put(gpa, value); }
    std::uint64_t get64(std::uint64_t gpa) { return get<std::uint64_t>(gpa); }

    static std::uint64_t descriptor(std::uint32_t base, std::uint32_t limit20, unsigned access,
                                    unsigned flags) {
        return (limit20 & 0xffff) | std::uint64_t{base & 0xffffff} << 16 |
               std::uint64_t{access} << 40 | std::uint64_t{limit20 >> 16} << 48 |
               std::uint64_t{flags} << 52 | std::uint64_t{base >> 24} << 56;
    }
    static std::uint64_t gate32(std::uint16_t selector, std::uint32_t offset, unsigned access) {
        return (offset & 0xffff) | std::uint64_t{selector} << 16 | std::uint64_t{access} << 40 |
               std::uint64_t{offset >> 16} << 48;
    }
    void set_descriptor(std::uint16_t selector, std::uint64_t value) {
        put64(kGdt + (selector & ~7u), value);
    }
    /// Long mode's gates have 16 bytes.
    void set_gate64(unsigned vector, std::uint16_t selector, std::uint64_t offset, unsigned access,
                    unsigned ist = 0) {
        put64(kIdt + vector * 16, gate32(selector, static_cast<std::uint32_t>(offset), access) |
                                      std::uint64_t{ist} << 32);
        put64(kIdt + vector * 16 + 8, offset >> 32);
    }

    void fill_gdt() {
        set_descriptor(kCode0, descriptor(0, 0xfffff, 0x9b, 0xc));
        set_descriptor(kData0, descriptor(0, 0xfffff, 0x93, 0xc));
        set_descriptor(kCode3, descriptor(0, 0xfffff, 0xfb, 0xc));
        set_descriptor(kData3, descriptor(0, 0xfffff, 0xf3, 0xc));
        set_descriptor(kCode64, descriptor(0, 0xfffff, 0x9b, 0xa));
        set_descriptor(kCode64User, descriptor(0, 0xfffff, 0xfb, 0xa));
        set_descriptor(kTssSelector, descriptor(kTss, 0x67, 0x8b, 0));
        set_descriptor(kLdtSelector, descriptor(kLdt, 0xff, 0x82, 0));
        state.gdtr = {kGdt, 0xfff};
    }
    void flat(unsigned cpl, bool wide = false) {
        const auto rpl = static_cast<std::uint16_t>(cpl);
        const std::uint16_t code =
            wide ? (cpl == 3 ? kCode64User : kCode64) : (cpl == 3 ? kCode3 : kCode0);
        state.segment[Cs] = {0, 0xffffffff, static_cast<std::uint16_t>(code | rpl),
                             static_cast<std::uint16_t>((wide ? 0xa09b : 0xc09b) | cpl << 5)};
        for (const SegmentIndex i : {Ss, Ds, Es, Fs, Gs})
            state.segment[i] = {0, 0xffffffff,
                                static_cast<std::uint16_t>((cpl == 3 ? kData3 : kData0) | rpl),
                                static_cast<std::uint16_t>(0xc093 | cpl << 5)};
        state.cpl = static_cast<std::uint8_t>(cpl);
        state.gpr[Rsp] = cpl == 3 ? kStack3 : kStack0;
        state.rip = kCode;
    }
    /// 32-bit flat protected mode without paging, TSS with SS0:ESP0, IDT of 256 gates.
    void protect(unsigned cpl = 0) {
        fill_gdt();
        state.cr0 = CR0_PE | CR0_ET | CR0_NE;
        state.idtr = {kIdt, 0x7ff};
        state.tr = {kTss, 0x67, kTssSelector, 0x8b};
        put<std::uint32_t>(kTss + 4, 0xd000);
        put<std::uint32_t>(kTss + 8, kData0);
        for (unsigned i = 0; i < 256; ++i)
            put64(kIdt + i * 8, gate32(kCode0, 0x20000 + i * 16, 0x8e));
        flat(cpl);
    }
    /// 64-bit mode, the first 2 MiB identity-mapped by 4-KiB user pages, the next by a large one.
    void long_mode(unsigned cpl = 0) {
        fill_gdt();
        put64(kPml4, kPdpt | P | RW | US);
        put64(kPdpt, kPd | P | RW | US);
        put64(kPd, kPt | P | RW | US);
        put64(kPd + 8, 0x200000 | P | RW | US | PS);
        for (std::uint64_t i = 0; i < 512; ++i)
            put64(kPt + i * 8, i << 12 | P | RW | US);
        state.cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_NE | CR0_WP;
        state.cr3 = kPml4;
        state.cr4 = CR4_PAE | CR4_PGE;
        state.efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
        state.idtr = {kIdt, 0xfff};
        state.tr = {kTss, 0x67, kTssSelector, 0x8b};
        put64(kTss + 4, 0xd000);    // RSP0
        put64(kTss + 0x24, 0xd800); // IST1
        for (unsigned i = 0; i < 256; ++i)
            set_gate64(i, kCode64, 0x20000 + i * 16, 0x8e);
        flat(cpl, true);
        state_changed(*cx);
        cx->changes = 0;
    }
    /// What an engine does with a failed operation.
    bool deliver() { return deliver_fault(*cx); }
    bool faulted(bool done, Vector vector, std::uint32_t error) const {
        return !done && cx->fault.vector == vector && cx->fault.has_error_code &&
               cx->fault.error_code == error;
    }
    bool faulted(bool done, Vector vector) const {
        return !done && cx->fault.vector == vector && !cx->fault.has_error_code;
    }
};

} // namespace doppel::cpu::x86::test
