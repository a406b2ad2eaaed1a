// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Two vCPUs of the same kind of machine, one on each engine, for tests: identity-mapped, no
/// devices.
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <span>
#include <stop_token>
#include <thread>
#include <vector>

#include "cpu/x86/frontend/translator_vcpu.hpp"
#include "cpu/x86/interpreter/vcpu/interpreter_vcpu.hpp"
#include "description/cpu_model.hpp"
#include "description/host_cpu.hpp"

namespace doppel::cpu::x86::frontend {

class NoInterrupts final : public InterruptPort {
public:
    bool has_event() const noexcept override { return false; }
    bool intr_pending() noexcept override { return false; }
    std::optional<std::uint8_t> acknowledge_intr() noexcept override { return std::nullopt; }
    CpuEvent take_event(bool, bool, std::uint8_t&) noexcept override { return CpuEvent::None; }
    std::uint8_t cr8() const noexcept override { return 0; }
    void set_cr8(std::uint8_t) noexcept override {}
    std::optional<std::uint64_t> read_msr(std::uint32_t) noexcept override { return std::nullopt; }
    bool write_msr(std::uint32_t, std::uint64_t) noexcept override { return false; }
    std::uint64_t mmio_page() const noexcept override { return UINT64_MAX; }
    std::uint32_t mmio_read(std::uint32_t) noexcept override { return 0; }
    void mmio_write(std::uint32_t, std::uint32_t) noexcept override {}
    void init_reset() noexcept override {}
};

class FixedTsc final : public TscSource {
public:
    std::uint64_t read() const noexcept override { return 42; }
    std::uint64_t frequency_hz() const noexcept override { return 1'000'000'000; }
    bool is_host_tsc(std::uint64_t&) const noexcept override { return false; }
};

inline constexpr std::uint64_t kRamBytes = 8 << 20;
inline constexpr std::uint64_t kCodeAt = 0x200000;
inline constexpr std::uint64_t kDataAt = 0x400000;
inline constexpr std::uint64_t kDataBytes = 0x4000;
/// Page tables: where random addresses, small ones above all, rarely lead.
inline constexpr std::uint64_t kTablesAt = 0x600000;

/// A page that plug() gives to a device; its physical address is beyond RAM.
inline constexpr std::uint64_t kDeviceAt = kRamBytes - 0x1000, kDeviceGpa = 0xe000'0000;

/// DOPPEL_CHAOS=SEED in the environment: all tests run with the translator disturbed;
/// DOPPEL_INLINE=1: no checks are shared.
inline TranslatorOptions environment_options() {
    TranslatorOptions options;
    const char* const chaos = std::getenv("DOPPEL_CHAOS");
    options.chaos = chaos == nullptr ? 0 : std::strtoull(chaos, nullptr, 0);
    if (options.chaos != 0) {
        options.tuning.loop_threshold = 1;
        options.tuning.busy_calls = 20;
    }
    options.tuning.shared_checks = std::getenv("DOPPEL_INLINE") == nullptr;
    return options;
}

/// What the code of a test is.
enum class Code { Long64, Compatibility32, Protected32 };

class TestMachine {
public:
    enum class Kind { Interpreter, Translator };

    /// With a `meter` instructions are counted, and its limit ends run().
    explicit TestMachine(Kind kind, InstructionMeter* meter = nullptr,
                         TranslatorOptions options = environment_options()) {
        const memory::RamRegion region{{0}, kRamBytes};
        memory_ = std::move(*memory::GuestMemory::create({&region, 1}));
        model_ = *description::find_cpu_model(description::default_cpu_model());
        const VcpuWiring wiring{0,       memory_.get(), &pio_,   &mmio_, &interrupts_,
                                nullptr, &tsc_,         &model_, meter};
        if (kind == Kind::Interpreter) {
            vcpu_ = std::move(*InterpreterVcpu::create(wiring, 1));
        } else {
            shared_ = std::move(*TranslatorMachine::create(*memory_, std::move(options)));
            vcpu_ = std::move(*TranslatorVcpu::create(*shared_, wiring, 1));
        }
        map_identity();
    }

    memory::GuestMemory& memory() { return *memory_; }
    Vcpu& vcpu() { return *vcpu_; }
    CpuState& state() { return vcpu_->state(); }
    /// KickExit after ten seconds: what goes astray fails, and does not hang.
    VmExit run_bounded() {
        const std::jthread watch{[this](const std::stop_token& ended) {
            std::mutex mutex;
            std::condition_variable_any never;
            std::unique_lock lock{mutex};
            never.wait_for(lock, ended, std::chrono::seconds{10}, [] { return false; });
            if (!ended.stop_requested())
                vcpu_->kick();
        }};
        return vcpu_->run();
    }

    /// Another thread kicks it after a moment, perhaps before it runs.
    VmExit run_until_kicked() {
        std::jthread kicker{[this] {
            std::this_thread::sleep_for(std::chrono::milliseconds{2});
            vcpu_->kick();
        }};
        return vcpu_->run();
    }

    /// 64-bit mode, flat segments, paging on, interrupts off; registers zero.
    void enter_long_mode(unsigned cpl = 0) {
        vcpu_->reset();
        CpuState& s = state();
        s.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
        s.cr3 = kTablesAt;
        s.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_PGE;
        s.efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
        s.xcr0 = 7;
        s.cpl = static_cast<std::uint8_t>(cpl);
        const auto dpl = static_cast<std::uint16_t>(cpl << 5);
        for (auto& segment : s.segment)
            segment = {0, 0xffff'ffff, static_cast<std::uint16_t>(0x10 | cpl),
                       static_cast<std::uint16_t>(0xc093 | dpl)};
        s.segment[Cs] = {0, 0xffff'ffff, static_cast<std::uint16_t>(0x8 | cpl),
                         static_cast<std::uint16_t>(0xa09b | dpl)};
        s.gpr = {};
        s.gpr[Rsp] = kDataAt + kDataBytes - 0x800;
        s.rip = kCodeAt;
        s.rflags = 2;
        vcpu_->state_changed();
    }
    /// Likewise in compatibility mode, or in protected mode without paging: flat 32-bit segments.
    void enter(Code code, unsigned cpl = 0) {
        enter_long_mode(cpl);
        CpuState& s = state();
        if (code != Code::Long64)
            s.segment[Cs].access =
                static_cast<std::uint16_t>((s.segment[Cs].access & 0xff) | 0xc000);
        if (code == Code::Protected32) {
            s.cr0 &= ~CR0_PG;
            s.efer = 0;
        }
        vcpu_->state_changed();
    }
    void write(std::uint64_t gpa, std::span<const std::uint8_t> bytes) {
        (void)memory_->write({gpa}, std::as_bytes(bytes));
    }
    std::vector<std::byte> data() {
        std::vector<std::byte> bytes(kDataBytes);
        (void)memory_->read({kDataAt}, bytes);
        return bytes;
    }

    /// The guest's 8 bytes at kDeviceAt are the device's.
    void plug(bus::IoHandler& device) {
        (void)mmio_.map({kDeviceGpa, 8, "device", {1, 8, false}, &device});
        (void)memory_->store(memory::Gpa{kTablesAt + 0x3000 + (kDeviceAt >> 12) * 8},
                             kDeviceGpa | 7);
    }

private:
    void map_identity() {
        const auto put = [&](std::uint64_t at, std::uint64_t value) {
            (void)memory_->store(memory::Gpa{at}, value);
        };
        put(kTablesAt, (kTablesAt + 0x1000) | 7);
        put(kTablesAt + 0x1000, (kTablesAt + 0x2000) | 7);
        for (std::uint64_t i = 0; i < kRamBytes >> 21; ++i) {
            put(kTablesAt + 0x2000 + i * 8, (kTablesAt + 0x3000 + i * 0x1000) | 7);
            for (std::uint64_t page = 0; page < 512; ++page)
                put(kTablesAt + 0x3000 + i * 0x1000 + page * 8, (i << 21 | page << 12) | 7);
        }
    }

    std::unique_ptr<memory::GuestMemory> memory_;
    bus::AddressSpace pio_{bus::AddressSpace::Kind::Pio};
    bus::AddressSpace mmio_{bus::AddressSpace::Kind::Mmio};
    NoInterrupts interrupts_;
    FixedTsc tsc_;
    description::CpuModel model_;
    std::unique_ptr<TranslatorMachine> shared_;
    std::unique_ptr<Vcpu> vcpu_;
};

} // namespace doppel::cpu::x86::frontend
