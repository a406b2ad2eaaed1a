// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Board pc-1.0: who is wired to whom. The only place that knows addresses and interrupt numbers
/// (pc_map.hpp).
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "base/result.hpp"
#include "bus/address_space.hpp"
#include "chardev/backend.hpp"
#include "cpu/apic_host.hpp"
#include "cpu/x86/board_ports.hpp"
#include "cpu/x86/cpu_state.hpp"
#include "description/cpu_model.hpp"
#include "firmware/loaders/loader.hpp"
#include "machine/power_sink.hpp"
#include "memory/guest_memory.hpp"

namespace doppel::devices {
class Device;
class VirtioDevice;
} // namespace doppel::devices

namespace doppel::machine {

/// A virtio device that the board shall have, and where.
struct PcVirtio {
    std::string name;    // unique
    std::string address; // on the PCI bus, as description::parse_address() reads it
    std::function<std::unique_ptr<devices::VirtioDevice>(memory::GuestMemory&)> make;
};

struct PcConfig {
    std::uint64_t memory_bytes = 0;
    unsigned cpus = 1;
    std::optional<std::uint16_t> debug_exit_port;
    std::vector<PcVirtio> virtio{};
};

/// What lies outside the board; all outlive it.
struct PcHost {
    base::TimerQueue& timers;
    const base::WallClock& wall_clock;
    const cpu::x86::TscSource& tsc;
    chardev::Backend& console; // first serial port
    PowerSink& power;
    const description::CpuModel& model;
    cpu::InstructionMeter* meter = nullptr;     // of the vCPUs, in virtual time
    cpu::x86::EntropySource* entropy = nullptr; // null: the host CPU's
};

/// What to boot; the spans live until boot() returns.
struct PcBoot {
    std::span<const std::byte> kernel;
    std::string_view kernel_name;
    std::span<const std::byte> initrd;
    std::string_view command_line;
    std::vector<firmware::MultibootModule> modules;
};

/// Control thread only, vCPUs paused, except what the chips do themselves.
class Pc {
public:
    /// Of CPUID leaf 4000'0001H, EAX: what this board adds to a CPU model.
    static const std::uint32_t kParavirtualFeatures;

    static base::Result<std::unique_ptr<Pc>> create(const PcConfig& config, const PcHost& host);
    ~Pc();

    memory::GuestMemory& memory();
    /// What vCPU `index` is wired to; valid as long as the board.
    cpu::x86::VcpuWiring wiring(unsigned index);
    /// After all vCPUs are made, if their engine keeps the local APICs: the board's become its
    /// façade. Shared with the engine, because timers and I/O threads may send interrupts while the
    /// VM is taken apart.
    void host_apics(std::shared_ptr<cpu::ApicHost> engine);
    /// Likewise, and before the devices' threads run: the engine notices what drivers write to
    /// doorbells by itself. Errors: the system's.
    base::Result<void> host_doorbells(std::shared_ptr<bus::DoorbellHost> engine);
    /// Before the vCPUs run: whom the local APIC of vCPU `index` wakes, and the vCPU's state (for
    /// its TSC offset).
    void connect(unsigned index, cpu::Wakeup& wakeup, const cpu::x86::CpuState& state);
    /// Before the vCPUs die: timers may still fire.
    void disconnect();

    /// What firmware leaves in every CPU (memory types), on top of RESET.
    void apply_firmware_state(cpu::x86::CpuState& state) const;
    /// Puts firmware tables and the kernel into memory and the entry state into `first`, which is
    /// as after RESET. Errors: of the loaders.
    base::Result<void> boot(const PcBoot& boot, cpu::x86::CpuState& first);
    /// Every chip as after power-on; memory keeps its contents.
    void reset();
    /// The chips' part of the pause handshake, vCPUs and clocks stopped; resume() in reverse order.
    void pause();
    void resume();
    /// After its chips, vCPUs and clocks were loaded, before the guest goes on. `Jumped`: time went
    /// on while the guest could not.
    enum class Time : std::uint8_t { WentOn, Jumped };
    void loaded(Time time);
    /// The power button is pressed. Any thread.
    void press_power_button();
    /// Every chip, in a fixed order, by unique names.
    std::vector<std::pair<std::string, devices::Device*>> chips();

private:
    struct Impl;
    explicit Pc(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

} // namespace doppel::machine
