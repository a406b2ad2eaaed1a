// SPDX-License-Identifier: Apache-2.0
#include "machine/pc.hpp"

#include <algorithm>
#include <array>
#include <ranges>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "description/machine.hpp"
#include "devices/apic/apic_bus.hpp"
#include "devices/apic/io_apic.hpp"
#include "devices/apic/local_apic.hpp"
#include "devices/hpet/hpet.hpp"
#include "devices/legacy/acpi_pm.hpp"
#include "devices/legacy/cmos_rtc.hpp"
#include "devices/legacy/debug_exit.hpp"
#include "devices/legacy/fw_cfg.hpp"
#include "devices/legacy/i8042.hpp"
#include "devices/legacy/pic8259.hpp"
#include "devices/legacy/pit8254.hpp"
#include "devices/legacy/reset_control.hpp"
#include "devices/legacy/uart16550.hpp"
#include "devices/pci/config_access.hpp"
#include "devices/pci/host_bridge.hpp"
#include "devices/pci/pci_bus.hpp"
#include "devices/pvclock/pvclock.hpp"
#include "devices/virtio/virtio_pci.hpp"
#include "firmware/acpi/tables.hpp"
#include "firmware/real_mode_area.hpp"
#include "machine/boot_state.hpp"
#include "machine/pc_map.hpp"

namespace doppel::machine {

using base::Result;
using firmware::MemoryMapEntry;
using memory::RamRegion;

namespace {

/// RAM as the board decodes it: conventional memory, the rest below the PCI window, the rest above
/// 4 GiB. The hole at a0000h is a video card's.
std::vector<RamRegion> ram_regions(std::uint64_t bytes) {
    std::vector<RamRegion> regions{{{0}, pc::kLowMemoryEnd}};
    const auto low_end = std::min(bytes, pc::kLowRamLimit);
    regions.push_back({{pc::kExtendedBase}, low_end - pc::kExtendedBase});
    if (bytes > low_end)
        regions.push_back({{pc::kHighBase}, bytes - low_end});
    return regions;
}

/// What the guest is told of it (ACPI 6.5 §15).
std::vector<MemoryMapEntry> memory_map(std::uint64_t bytes) {
    using Type = MemoryMapEntry::Type;
    const auto low_end = std::min(bytes, pc::kLowRamLimit);
    std::vector<MemoryMapEntry> map{
        {0, pc::kEbda, Type::Ram},
        {pc::kEbda, pc::kLowMemoryEnd - pc::kEbda, Type::Reserved},
        {pc::kFirmwareArea, (1 << 20) - pc::kFirmwareArea, Type::Reserved},
        {1 << 20, low_end - (1 << 20), Type::Ram},
        {pc::kEcam, pc::kEcamSize, Type::Reserved},
    };
    if (bytes > low_end)
        map.push_back({pc::kHighBase, bytes - low_end, Type::Ram});
    return map;
}

firmware::acpi::AcpiBoard acpi_board(unsigned cpus) {
    using devices::AcpiPm;
    firmware::acpi::AcpiBoard b;
    b.cpus = cpus;
    b.local_apic = pc::kLocalApic;
    b.io_apic = pc::kIoApic;
    b.hpet = pc::kHpet;
    b.ecam = pc::kEcam;
    b.ecam_size = pc::kEcamSize;
    b.pci_window = pc::kPciWindow;
    b.pci_window_end = pc::kPciWindowEnd;
    b.pci_window64 = pc::kPciWindow64;
    b.pci_window64_size = pc::kPciWindow64Size;
    b.pm1_event = pc::kAcpiPm + AcpiPm::kPm1Event;
    b.pm1_control = pc::kAcpiPm + AcpiPm::kPm1Control;
    b.pm_timer = pc::kAcpiPm + AcpiPm::kTimer;
    b.gpe0 = pc::kAcpiGpe0;
    b.gpe0_bytes = AcpiPm::kGpeBytes;
    b.reset_port = pc::kReset;
    b.reset_value = devices::ResetControl::kHardReset;
    b.s5_sleep_type = AcpiPm::kSleepTypeSoftOff;
    b.sci_irq = pc::kIrqAcpi;
    b.pci_first_gsi = pc::kGsiPci;
    b.timer_gsi = pc::kGsiTimer;
    b.com1 = pc::kCom1;
    b.com1_irq = pc::kIrqCom1;
    return b;
}

/// The local APICs' timers count the guest's TSC.
class TscAdapter final : public devices::TscPort {
public:
    TscAdapter(const cpu::x86::TscSource& source, const base::Clock& clock)
        : source_{source}, clock_{clock} {}

    std::uint64_t now() const noexcept override { return source_.read(); }
    std::uint64_t ns_at(std::uint64_t tsc) const noexcept override {
        const auto now = clock_.now_ns();
        const auto left = static_cast<std::int64_t>(tsc - source_.read());
        if (left <= 0)
            return now;
        const auto ns = static_cast<Wide>(left) * 1'000'000'000u / source_.frequency_hz();
        return ns > UINT64_MAX - now ? UINT64_MAX : now + static_cast<std::uint64_t>(ns);
    }

private:
    __extension__ using Wide = unsigned __int128;
    const cpu::x86::TscSource& source_;
    const base::Clock& clock_;
};

/// What a guest's RDTSC gives: the board's counter and the vCPU's own offset (IA32_TSC,
/// IA32_TSC_ADJUST). A vCPU writes its offset on its own thread; others may see it a moment late.
class GuestTscAdapter final : public devices::GuestTsc {
public:
    explicit GuestTscAdapter(const cpu::x86::TscSource& source) : source_{source} {}
    void connect(unsigned vcpu, const cpu::x86::CpuState& state) {
        states_.resize(std::max<std::size_t>(states_.size(), vcpu + 1));
        states_[vcpu] = &state;
    }
    std::uint64_t read(unsigned vcpu) const noexcept override {
        return source_.read() + states_[vcpu]->tsc_offset;
    }
    std::uint64_t frequency_hz() const noexcept override { return source_.frequency_hz(); }
    bool is_synchronized() const noexcept override {
        return std::ranges::all_of(states_, [&](const auto* state) {
            return state->tsc_offset == states_.front()->tsc_offset;
        });
    }

private:
    const cpu::x86::TscSource& source_;
    std::vector<const cpu::x86::CpuState*> states_; // of the vCPUs, which outlive the guest's run
};

/// The board's MSRs: kvmclock.
class BoardMsrs final : public cpu::x86::MsrPort {
public:
    explicit BoardMsrs(devices::PvClock& clock) : clock_{clock} {}
    std::optional<std::uint64_t> read_msr(unsigned vcpu, std::uint32_t index) noexcept override {
        return clock_.read_msr(vcpu, index);
    }
    bool write_msr(unsigned vcpu, std::uint32_t index, std::uint64_t value) noexcept override {
        constexpr std::uint32_t IA32_TSC = 0x10, IA32_TSC_ADJUST = 0x3b;
        if (index == IA32_TSC || index == IA32_TSC_ADJUST) {
            clock_.refresh();
            return true;
        }
        return clock_.write_msr(vcpu, index, value);
    }

private:
    devices::PvClock& clock_;
};

/// INTR of the 8259 pair: LINT0 of every local APIC, as the MultiProcessor Specification 1.4
/// (§3.6.2.2) wires it.
class FanOut final : public bus::IrqSink {
public:
    explicit FanOut(const std::vector<std::unique_ptr<devices::LocalApic>>& apics)
        : apics_{apics} {}
    void set_irq_level(std::uint32_t input, bool level) noexcept override {
        for (const auto& apic : apics_)
            apic->set_irq_level(input, level);
    }

private:
    const std::vector<std::unique_ptr<devices::LocalApic>>& apics_; // of the board
};

} // namespace

struct Pc::Impl final : bus::IrqSink {
    Impl(const PcConfig& pc_config, const PcHost& pc_host) : config{pc_config}, host{pc_host} {}

    const PcConfig config;
    const PcHost host;
    std::unique_ptr<memory::GuestMemory> memory;
    std::shared_ptr<bus::DoorbellHost> doorbell_host; // the engine's, if it has one
    bus::AddressSpace pio{bus::AddressSpace::Kind::Pio};
    bus::AddressSpace mmio{bus::AddressSpace::Kind::Mmio};

    TscAdapter tsc{host.tsc, host.timers.clock()};
    std::shared_ptr<cpu::ApicHost> apic_host; // the engine's, if it has one; shared with it
    devices::ApicBus apic_bus;
    devices::IoApic io_apic{apic_bus};
    std::vector<std::unique_ptr<devices::LocalApic>> local_apics;
    FanOut lint0{local_apics};
    devices::Pic8259 pic{{lint0, devices::LocalApic::kLint0Input}};
    devices::Hpet hpet{{.io_apic = &io_apic,
                        .irq0 = {*this, pc::kIrqTimer},
                        .irq8 = {*this, pc::kIrqRtc},
                        .msi = &apic_bus},
                       host.timers};
    devices::Pit8254 pit{hpet.from_pit(), host.timers};
    devices::CmosRtc rtc{hpet.from_rtc(), host.wall_clock, host.timers};
    devices::I8042 i8042{{*this, pc::kIrqKeyboard},
                         {.reset_cpu = [this] { host.power.reset_requested(); }, .set_a20 = {}}};
    devices::AcpiPm acpi_pm{{*this, pc::kIrqAcpi},
                            host.timers,
                            devices::AcpiPm::TimerWidth::Bits32,
                            [this] { host.power.power_off(); }};
    devices::ResetControl reset_control{[this] { host.power.reset_requested(); }};
    devices::Uart16550 com1{{*this, pc::kIrqCom1}, host.console, &host.console, host.timers};
    devices::PciBus pci_bus{pio, mmio, io_apic, pc::kGsiPci, apic_bus};
    devices::PciConfigPorts pci_ports{pci_bus, &reset_control};
    devices::PciEcam pci_ecam{pci_bus};
    devices::PciBridge host_bridge{devices::PciBridge::kHost};
    GuestTscAdapter guest_tsc{host.tsc};
    std::unique_ptr<devices::PvClock> pvclock;
    std::unique_ptr<BoardMsrs> msrs;
    std::unique_ptr<devices::FwCfg> fw_cfg;
    std::unique_ptr<devices::DebugExit> debug_exit;
    std::vector<std::pair<std::string, std::unique_ptr<devices::VirtioPci>>> virtio;

    Result<void> build();
    void build_apics();
    Result<void> build_fw_cfg();
    Result<void> build_pci();
    Result<void> build_virtio();
    /// ISA interrupt: to the 8259 pair and to the I/O APIC.
    void set_irq_level(std::uint32_t irq, bool level) noexcept override {
        pic.set_irq_level(irq, level);
        io_apic.set_irq_level(irq == pc::kIrqTimer ? pc::kGsiTimer : irq, level);
    }
};

void Pc::Impl::build_apics() {
    for (unsigned i = 0; i < config.cpus; ++i) {
        const devices::LocalApic::Config settings{
            .id = i, .is_boot_cpu = i == 0, .physical_address_bits = host.model.physical_bits};
        local_apics.push_back(
            std::make_unique<devices::LocalApic>(settings, apic_bus, host.timers, &tsc, &pic));
    }
    local_apics.front()->enter_virtual_wire_mode();
}

/// Test kernels ask for the number of CPUs here; firmware for the memory map.
Result<void> Pc::Impl::build_fw_cfg() {
    fw_cfg = std::make_unique<devices::FwCfg>(*memory);
    std::vector<std::byte> cpus(2);
    base::store_le(cpus.data(), static_cast<std::uint16_t>(config.cpus));
    fw_cfg->set_item(devices::FwCfg::CpuCount, std::move(cpus));
    std::vector<std::byte> e820;
    for (const auto& entry : memory_map(config.memory_bytes)) {
        e820.resize(e820.size() + 20);
        auto* p = e820.data() + e820.size() - 20;
        base::store_le(p, entry.base);
        base::store_le(p + 8, entry.size);
        base::store_le(p + 16, static_cast<std::uint32_t>(entry.type));
    }
    DOPPEL_TRY_VOID(fw_cfg->add_file("etc/e820", std::move(e820)));
    return pio.map({pc::kFwCfg, devices::FwCfg::kPortBytes, "fw_cfg", {1, 8, true}, fw_cfg.get()});
}

Result<void> Pc::Impl::build_pci() {
    using devices::PciConfigPorts;
    using devices::PciEcam;
    DOPPEL_TRY_VOID(pci_bus.add({0, 0, 0}, host_bridge));
    DOPPEL_TRY_VOID(pio.map({pc::kPciConfig, PciConfigPorts::kPortCount, "pci configuration",
                             PciConfigPorts::kRules, &pci_ports}));
    return mmio.map({pc::kEcam, PciEcam::kBytes, "pci ecam", PciEcam::kRules, &pci_ecam});
}

Result<void> Pc::Impl::build_virtio() {
    for (const auto& wanted : config.virtio) {
        const auto place = description::parse_address(wanted.address);
        if (!place)
            return base::fail(base::Errc::InvalidArgument,
                              fmt::format("'{}' is no PCI address", wanted.address));
        auto function = std::make_unique<devices::VirtioPci>(wanted.make(*memory));
        DOPPEL_TRY_VOID(pci_bus.add({0, place->device, place->function}, *function));
        virtio.emplace_back(wanted.name, std::move(function));
    }
    return {};
}

Result<void> Pc::Impl::build() {
    memory = DOPPEL_TRY(memory::GuestMemory::create(ram_regions(config.memory_bytes)));
    build_apics();
    DOPPEL_TRY_VOID(mmio.map({pc::kIoApic, 0x1000, "io-apic", {1, 4, false}, &io_apic}));
    constexpr bus::AccessRules kBytes{1, 1, true};
    DOPPEL_TRY_VOID(pio.map({pc::kPicMaster, 2, "pic master", kBytes, &pic.master()}));
    DOPPEL_TRY_VOID(pio.map({pc::kPicSlave, 2, "pic slave", kBytes, &pic.slave()}));
    DOPPEL_TRY_VOID(pio.map({pc::kElcr, 2, "elcr", kBytes, &pic.elcr()}));
    DOPPEL_TRY_VOID(
        mmio.map({pc::kHpet, devices::Hpet::kMappingBytes, "hpet", {4, 8, false}, &hpet}));
    DOPPEL_TRY_VOID(pio.map({pc::kI8042Data, 1, "i8042 data", kBytes, &i8042.data()}));
    DOPPEL_TRY_VOID(pio.map({pc::kI8042Command, 1, "i8042 command", kBytes, &i8042.command()}));
    DOPPEL_TRY_VOID(pio.map({pc::kPort92, 1, "port 92h", kBytes, &i8042.port92()}));
    DOPPEL_TRY_VOID(build_pci());
    DOPPEL_TRY_VOID(build_virtio());
    pvclock = std::make_unique<devices::PvClock>(config.cpus, *memory, guest_tsc,
                                                 host.timers.clock(), host.wall_clock);
    msrs = std::make_unique<BoardMsrs>(*pvclock);
    DOPPEL_TRY_VOID(build_fw_cfg());
    DOPPEL_TRY_VOID(pio.map({pc::kPit, 4, "pit", kBytes, &pit.counters()}));
    DOPPEL_TRY_VOID(pio.map({pc::kPortB, 1, "port 61h", kBytes, &pit.port61()}));
    DOPPEL_TRY_VOID(pio.map({pc::kRtc, 2, "rtc", kBytes, &rtc}));
    constexpr bus::AccessRules kDwords{1, 4, true};
    DOPPEL_TRY_VOID(
        pio.map({pc::kAcpiPm, devices::AcpiPm::kBlockBytes, "acpi pm", kDwords, &acpi_pm.block()}));
    DOPPEL_TRY_VOID(pio.map(
        {pc::kAcpiGpe0, devices::AcpiPm::kGpeBytes, "acpi gpe0", kDwords, &acpi_pm.gpe0()}));
    DOPPEL_TRY_VOID(pio.map({pc::kCom1, 8, "com1", kBytes, &com1}));
    if (config.debug_exit_port) {
        debug_exit = std::make_unique<devices::DebugExit>(
            [this](int exit_code) { host.power.debug_exit(exit_code); });
        DOPPEL_TRY_VOID(
            pio.map({*config.debug_exit_port, 4, "debug-exit", {1, 4, true}, debug_exit.get()}));
    }
    return {};
}

const std::uint32_t Pc::kParavirtualFeatures = devices::PvClock::kCpuidFeatures;

Pc::Pc(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
Pc::~Pc() = default;

Result<std::unique_ptr<Pc>> Pc::create(const PcConfig& config, const PcHost& host) {
    auto impl = std::make_unique<Impl>(config, host);
    DOPPEL_TRY_VOID(impl->build());
    return std::unique_ptr<Pc>{new Pc{std::move(impl)}};
}

memory::GuestMemory& Pc::memory() { return *impl_->memory; }

cpu::x86::VcpuWiring Pc::wiring(unsigned index) {
    return {.index = index,
            .memory = impl_->memory.get(),
            .pio = &impl_->pio,
            .mmio = &impl_->mmio,
            .interrupts = impl_->local_apics[index].get(),
            .msrs = impl_->msrs.get(),
            .tsc = &impl_->host.tsc,
            .model = &impl_->host.model,
            .meter = impl_->host.meter,
            .entropy = impl_->host.entropy};
}

void Pc::host_apics(std::shared_ptr<cpu::ApicHost> engine) {
    impl_->apic_host = std::move(engine);
    impl_->apic_bus.host_in(*impl_->apic_host);
    for (unsigned i = 0; i < impl_->config.cpus; ++i)
        impl_->local_apics[i]->host_in(impl_->apic_host->apic(i));
    impl_->io_apic.publish_routes();
}

Result<void> Pc::host_doorbells(std::shared_ptr<bus::DoorbellHost> engine) {
    for (const auto& [name, function] : impl_->virtio)
        DOPPEL_TRY_VOID(function->use_doorbells());
    impl_->doorbell_host = std::move(engine);
    impl_->mmio.set_doorbell_host(impl_->doorbell_host.get());
    return {};
}

void Pc::connect(unsigned index, cpu::Wakeup& wakeup, const cpu::x86::CpuState& state) {
    impl_->local_apics[index]->attach(&wakeup);
    impl_->guest_tsc.connect(index, state);
}

void Pc::disconnect() {
    for (const auto& apic : impl_->local_apics)
        apic->attach(nullptr);
}

void Pc::apply_firmware_state(cpu::x86::CpuState& state) const {
    apply_memory_types(state, impl_->host.model.physical_bits);
}

Result<void> Pc::boot(const PcBoot& boot, cpu::x86::CpuState& first) {
    const auto map = memory_map(impl_->config.memory_bytes);
    constexpr auto kTablesEnd = firmware::kRealModeHandlersEnd - firmware::kRealModeHandlerBytes;
    DOPPEL_TRY_VOID(firmware::write_real_mode_area(*impl_->memory, {pc::kEbda, pc::kCom1}));
    const auto rsdp =
        DOPPEL_TRY(firmware::acpi::write_tables(*impl_->memory, acpi_board(impl_->config.cpus),
                                                pc::kFirmwareArea, kTablesEnd - pc::kFirmwareArea));
    const firmware::BootRequest request{.kernel = boot.kernel,
                                        .kernel_name = boot.kernel_name,
                                        .initrd = boot.initrd,
                                        .command_line = boot.command_line,
                                        .modules = boot.modules,
                                        .map = map,
                                        .rsdp = rsdp};
    apply_boot_state(DOPPEL_TRY(firmware::load_kernel(*impl_->memory, request)), first);
    return {};
}

void Pc::reset() {
    for (const auto& [name, chip] : chips())
        chip->reset();
    impl_->local_apics.front()->enter_virtual_wire_mode();
}

void Pc::pause() {
    for (const auto& [name, chip] : chips())
        chip->pause();
}

void Pc::resume() {
    for (const auto& [name, chip] : std::views::reverse(chips()))
        chip->resume();
}

void Pc::loaded(Time time) {
    using devices::PvClock;
    impl_->pvclock->refresh(time == Time::Jumped ? PvClock::Time::Jumped : PvClock::Time::WentOn);
}

void Pc::press_power_button() { impl_->acpi_pm.press_power_button(); }

std::vector<std::pair<std::string, devices::Device*>> Pc::chips() {
    auto& b = *impl_;
    std::vector<std::pair<std::string, devices::Device*>> all{
        {"io-apic", &b.io_apic},
        {"pic", &b.pic},
        {"hpet", &b.hpet},
        {"pit", &b.pit},
        {"rtc", &b.rtc},
        {"i8042", &b.i8042},
        {"acpi-pm", &b.acpi_pm},
        {"reset-control", &b.reset_control},
        {"pci-ports", &b.pci_ports},
        {"pci-00.0", &b.host_bridge},
        {"pvclock", b.pvclock.get()},
        {"fw_cfg", b.fw_cfg.get()},
        {"com1", &b.com1},
    };
    for (std::size_t i = 0; i < b.local_apics.size(); ++i)
        all.emplace_back(fmt::format("local-apic-{}", i), b.local_apics[i].get());
    if (b.debug_exit)
        all.emplace_back("debug-exit", b.debug_exit.get());
    for (const auto& [name, function] : b.virtio)
        all.emplace_back(name, function.get());
    return all;
}

} // namespace doppel::machine
