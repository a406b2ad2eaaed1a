// SPDX-License-Identifier: Apache-2.0
#include "tests/oracle/guest_cpu.hpp"

#include <cstring>

#include "base/verify.hpp"
#include "cpu/x86/frontend/translator_vcpu.hpp"
#include "cpu/x86/interpreter/vcpu/interpreter_vcpu.hpp"
#include "description/cpu_model.hpp"
#include "description/host_cpu.hpp"
#include "tests/oracle/xsave_image.hpp"

namespace doppel::oracle {
namespace {

using namespace cpu::x86;

/// Nothing ever interrupts.
class SilentPort final : public cpu::InterruptPort {
public:
    bool has_event() const noexcept override { return false; }
    bool intr_pending() noexcept override { return false; }
    std::optional<std::uint8_t> acknowledge_intr() noexcept override { return std::nullopt; }
    cpu::CpuEvent take_event(bool, bool, std::uint8_t&) noexcept override {
        return cpu::CpuEvent::None;
    }
    std::uint8_t cr8() const noexcept override { return 0; }
    void set_cr8(std::uint8_t) noexcept override {}
    std::optional<std::uint64_t> read_msr(std::uint32_t) noexcept override { return std::nullopt; }
    bool write_msr(std::uint32_t, std::uint64_t) noexcept override { return false; }
    std::uint64_t mmio_page() const noexcept override { return ~std::uint64_t{0}; }
    std::uint32_t mmio_read(std::uint32_t) noexcept override { return 0; }
    void mmio_write(std::uint32_t, std::uint32_t) noexcept override {}
    void init_reset() noexcept override {}
};

struct StoppedTsc final : TscSource {
    std::uint64_t read() const noexcept override { return 0; }
    std::uint64_t frequency_hz() const noexcept override { return 1'000'000'000; }
    bool is_host_tsc(std::uint64_t&) const noexcept override { return false; }
};

// --- guest-physical layout; the kernel part is mapped at kKernel, for supervisors only ---
constexpr std::uint64_t kRam = 2 << 20;
constexpr std::uint64_t kPml4 = 0x1000, kPdpt = 0x2000, kPd = 0x3000, kPtUser = 0x4000,
                        kPdptKernel = 0x5000, kPdKernel = 0x6000, kPtKernel = 0x7000, kGdt = 0x8000,
                        kTss = 0x9000, kIdt = 0xa000, kHandlers = 0xb000, kKernelStackTop = 0xe000,
                        kFrames = 0x100000;
constexpr std::uint64_t kKernel = 0xffff'8000'0000'0000;
constexpr std::uint64_t kCodeFrame = kFrames,
                        kImageFrame = kFrames + area::kCodePages * area::kPage;
constexpr std::uint64_t kHandlerStride = 16;
constexpr std::uint8_t kInt3 = 0xcc;
constexpr std::uint64_t kP = 1, kRw = 2, kUs = 4, kA = 0x20, kD = 0x40, kNx = 1ull << 63;

// --- selectors as Linux has them ---
constexpr std::uint16_t kKernelCode = 0x10, kUserCode32 = 0x23, kUserData = 0x2b,
                        kUserCode64 = 0x33, kTssSelector = 0x40;

bool pushes_error_code(unsigned vector) {
    return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

/// x86-64-v3, as far as the host has it, and what else of the vector instructions it has.
description::CpuModel test_model() {
    auto model = description::find_cpu_model(description::default_cpu_model()).value();
    for (auto& entry : model.cpuid) {
        if (entry.leaf != 7 || entry.subleaf != 0)
            continue;
        entry.registers.ebx |= 1u << 24; // CLWB
        entry.registers.ecx |= (__builtin_cpu_supports("gfni") ? 1u << 8 : 0) |
                               (__builtin_cpu_supports("vaes") ? 1u << 9 : 0) |
                               (__builtin_cpu_supports("vpclmulqdq") ? 1u << 10 : 0);
    }
    return model;
}

} // namespace

struct GuestCpu::Parts {
    std::vector<MemoryImage> images;
    std::unique_ptr<memory::GuestMemory> ram;
    bus::AddressSpace pio{bus::AddressSpace::Kind::Pio};
    bus::AddressSpace mmio{bus::AddressSpace::Kind::Mmio};
    SilentPort port;
    StoppedTsc tsc;
    description::CpuModel model = test_model();
    std::unique_ptr<Vcpu> vcpu;
    std::byte* host = nullptr; // of guest-physical 0
    CpuState initial;
    MemoryImage result;
    std::uint64_t last_code = 0; // offset of the code of the last case
    std::size_t last_bytes = 0;

    template <typename T> void put(std::uint64_t gpa, T value) {
        std::memcpy(host + gpa, &value, sizeof value);
    }
    std::uint64_t get64(std::uint64_t gpa) const {
        std::uint64_t value;
        std::memcpy(&value, host + gpa, 8);
        return value;
    }
    void map_user(std::uint64_t linear, std::uint64_t gpa, std::uint64_t pages,
                  std::uint64_t bits) {
        for (std::uint64_t i = 0; i < pages; ++i)
            put(kPtUser + ((linear >> 12) + i) % 512 * 8, (gpa + i * area::kPage) | bits);
    }
    void write_code(std::uint64_t offset, std::span<const std::uint8_t> bytes) {
        DOPPEL_VERIFY(ram->write({kCodeFrame + offset}, std::as_bytes(bytes)), "code is in RAM");
    }
    /// As a device would: an engine may have translated what was there.
    void put_code(const Case& test) {
        std::array<std::uint8_t, sizeof(Case::code)> nothing;
        nothing.fill(kInt3);
        write_code(last_code, {nothing.data(), last_bytes});
        last_code = test.code_offset;
        last_bytes = code_bytes(test);
        write_code(last_code, {test.code.data(), last_bytes});
    }
    void build_page_tables();
    void build_descriptors();
    void build_state();
    Outcome outcome_after_halt();
};

void GuestCpu::Parts::build_page_tables() {
    constexpr std::uint64_t kTable = kP | kRw | kUs | kA;
    put(kPml4, kPdpt | kTable);
    put(kPdpt, kPd | kTable);
    put(kPd + (area::kCode >> 21) * 8, kPtUser | kTable);
    static_assert(area::kCode >> 21 == area::kStack >> 21 && area::kCode >> 30 == 0);
    map_user(area::kCode, kCodeFrame, area::kCodePages, kP | kUs | kA | kD);
    map_user(area::kData, kImageFrame, 2, kP | kUs | kRw | kA | kD | kNx);
    map_user(area::kReadOnly, kImageFrame + 2 * area::kPage, 1, kP | kUs | kA | kD | kNx);
    map_user(area::kStack, kImageFrame + 3 * area::kPage, 1, kP | kUs | kRw | kA | kD | kNx);
    put(kPml4 + std::uint64_t{256} * 8, kPdptKernel | kTable);
    put(kPdptKernel, kPdKernel | kTable);
    put(kPdKernel, kPtKernel | kTable);
    for (std::uint64_t page = 0; page < 16; ++page)
        put(kPtKernel + page * 8, page * area::kPage | kP | kRw | kA | kD);
}

void GuestCpu::Parts::build_descriptors() {
    put(kGdt + kKernelCode, std::uint64_t{0x00af9b000000ffff});
    put(kGdt + 0x18, std::uint64_t{0x00cf93000000ffff});
    put(kGdt + (kUserCode32 & ~7), std::uint64_t{0x00cffb000000ffff});
    put(kGdt + (kUserData & ~7), std::uint64_t{0x00cff3000000ffff});
    put(kGdt + (kUserCode64 & ~7), std::uint64_t{0x00affb000000ffff});
    put(kTss + 4, kKernel + kKernelStackTop);                  // RSP0
    put(kTss + 0x66, std::uint16_t{0x68});                     // no I/O permission bitmap
    std::memset(host + kHandlers, 0xf4, 256 * kHandlerStride); // HLT
    for (std::uint64_t vector = 0; vector < 256; ++vector) {
        const std::uint64_t offset = kKernel + kHandlers + vector * kHandlerStride;
        const std::uint64_t dpl = vector == 3 || vector == 4 ? 3 : 0;
        put(kIdt + vector * 16, (offset & 0xffff) | std::uint64_t{kKernelCode} << 16 |
                                    (0x8e00 | dpl << 13) << 32 | (offset >> 16 & 0xffff) << 48);
        put(kIdt + vector * 16 + 8, offset >> 32);
    }
}

void GuestCpu::Parts::build_state() {
    initial = vcpu->state();
    initial.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    initial.cr3 = kPml4;
    initial.cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE |
                  CR4_SMEP | CR4_SMAP | CR4_UMIP;
    initial.efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
    initial.xcr0 = 7;
    for (const SegmentIndex i : {Es, Ss, Ds})
        initial.segment[i] = {0, 0xffffffff, kUserData, 0xc0f3};
    initial.segment[Fs] = {area::kFsBase, 0, 0, 0}; // null selectors with a base, as Linux has them
    initial.segment[Gs] = {area::kGsBase, 0, 0, 0};
    initial.gdtr = {kKernel + kGdt, 0x4f};
    initial.idtr = {kKernel + kIdt, 0xfff};
    initial.tr = {kKernel + kTss, 0x67, kTssSelector, 0x8b};
    initial.ldtr = {};
    initial.cpl = 3;
    initial.activity = Activity::Running;
}

GuestCpu::GuestCpu(std::unique_ptr<Parts> parts) : parts_{std::move(parts)} {}
GuestCpu::~GuestCpu() = default;

base::Result<std::unique_ptr<GuestCpu>> GuestCpu::create(const VcpuFactory& factory,
                                                         std::span<const MemoryImage> images) {
    auto parts = std::make_unique<Parts>();
    parts->images.assign(images.begin(), images.end());
    const memory::RamRegion region{{0}, kRam};
    parts->ram = DOPPEL_TRY(memory::GuestMemory::create({&region, 1}));
    parts->host = parts->ram->engine_page({0});
    VcpuWiring wiring;
    wiring.memory = parts->ram.get();
    wiring.pio = &parts->pio;
    wiring.mmio = &parts->mmio;
    wiring.interrupts = &parts->port;
    wiring.tsc = &parts->tsc;
    wiring.model = &parts->model;
    parts->vcpu = DOPPEL_TRY(factory(wiring));
    std::memset(parts->host + kCodeFrame, kInt3, area::kCodePages * area::kPage);
    parts->build_page_tables();
    parts->build_descriptors();
    parts->build_state();
    return std::unique_ptr<GuestCpu>{new GuestCpu{std::move(parts)}};
}

/// Which handler halted, and what the CPU pushed for it.
Outcome GuestCpu::Parts::outcome_after_halt() {
    const CpuState& state = vcpu->state();
    Outcome outcome;
    const auto vector = (state.rip - 1 - kKernel - kHandlers) / kHandlerStride;
    outcome.vector = static_cast<std::uint8_t>(vector);
    std::uint64_t frame = state.gpr[Rsp] - kKernel;
    if (pushes_error_code(outcome.vector)) {
        outcome.error_code = static_cast<std::uint32_t>(get64(frame));
        frame += 8;
    }
    outcome.cr2 = state.cr2;
    outcome.rip = get64(frame);
    outcome.rflags = get64(frame + 16);
    outcome.gpr = state.gpr;
    outcome.gpr[Rsp] = get64(frame + 24);
    outcome.vectors = get_vectors(state.xsave.bytes.data());
    return outcome;
}

namespace {
void load_segments(CpuState& state, Mode mode) {
    if (mode != Mode::Bits16) {
        state.segment[Cs] = mode == Mode::Bits64 ? Segment{0, 0xffffffff, kUserCode64, 0xa0fb}
                                                 : Segment{0, 0xffffffff, kUserCode32, 0xc0fb};
        if (mode == Mode::Bits32) {
            state.segment[Fs] = {area::kFsBase, 0xffffffff, ldt::kFs, 0x80f3};
            state.segment[Gs] = {area::kGsBase, area::kGsBytes - 1, ldt::kGs, 0x00f3};
        }
        return;
    }
    constexpr std::uint32_t kLast = area::kPage - 1;
    state.segment[Cs] = {area::kCode, area::kCodePages * area::kPage - 1, ldt::kCode, 0x00fb};
    state.segment[Ds] = state.segment[Es] = {area::kData, 2 * area::kPage - 1, ldt::kData, 0x00f3};
    state.segment[Ss] = {area::kStack, kLast, ldt::kStack, 0x00f3};
}
} // namespace

Outcome GuestCpu::run(const Case& test) {
    Parts& p = *parts_;
    p.put_code(test);
    std::memcpy(p.host + kImageFrame, p.images[test.memory].data(), area::kImageBytes);
    for (std::size_t i = 0; i < test.poke_at.size(); ++i)
        if (test.poke_at[i] != 0)
            p.put(kImageFrame + image_offset(test.poke_at[i]), test.poke[i]);
    CpuState& state = p.vcpu->state();
    state = p.initial;
    state.gpr = test.gpr;
    state.rip = initial_rip(test);
    state.rflags = test.rflags;
    load_segments(state, test.mode);
    put_vectors(state.xsave.bytes.data(), test.vectors);
    p.vcpu->state_changed();
    const cpu::VmExit exit = p.vcpu->run();
    std::memcpy(p.result.data(), p.host + kImageFrame, area::kImageBytes);
    if (!std::holds_alternative<cpu::HaltExit>(exit) || state.cpl != 0)
        return Outcome{.vector = kHung};
    return p.outcome_after_halt();
}

const MemoryImage& GuestCpu::memory() const { return parts_->result; }

namespace {

/// The vCPU with what it shares with others: here it is alone.
class LoneTranslator final : public Vcpu {
public:
    LoneTranslator(std::unique_ptr<TranslatorMachine> machine, std::unique_ptr<Vcpu> vcpu)
        : machine_{std::move(machine)}, vcpu_{std::move(vcpu)} {}
    std::string_view engine_name() const override { return vcpu_->engine_name(); }
    cpu::VmExit run() override { return vcpu_->run(); }
    void kick() noexcept override { vcpu_->kick(); }
    void notify() noexcept override { vcpu_->notify(); }
    void reset() override { vcpu_->reset(); }
    void save(state::Encoder& to) const override { vcpu_->save(to); }
    base::Result<void> load(state::Decoder& from) override { return vcpu_->load(from); }
    cpu::VcpuStats stats() const override { return vcpu_->stats(); }
    CpuState& state() override { return vcpu_->state(); }
    void state_changed() override { vcpu_->state_changed(); }

private:
    std::unique_ptr<TranslatorMachine> machine_;
    std::unique_ptr<Vcpu> vcpu_;
};

base::Result<std::unique_ptr<Vcpu>> create_translator(const VcpuWiring& wiring) {
    auto machine = DOPPEL_TRY(TranslatorMachine::create(*wiring.memory, {.block_limit = 20'000}));
    auto vcpu = DOPPEL_TRY(TranslatorVcpu::create(*machine, wiring, 1));
    return std::make_unique<LoneTranslator>(std::move(machine), std::move(vcpu));
}

} // namespace

base::Result<VcpuFactory> find_engine(std::string_view name) {
    if (name == "translator")
        return VcpuFactory{create_translator};
    if (name == "interpreter")
        return VcpuFactory{[](const VcpuWiring& wiring) -> base::Result<std::unique_ptr<Vcpu>> {
            auto vcpu = DOPPEL_TRY(InterpreterVcpu::create(wiring, 1));
            vcpu->set_step_limit(20'000); // a case that goes on for ever comes back as hung
            return vcpu;
        }};
    return base::fail(base::Errc::InvalidArgument, "no engine '" + std::string{name} + "'");
}

} // namespace doppel::oracle
