// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The machine description: the only input of doppel-vmm. Every command-line flag of `doppel run`
/// compiles to it; its JSON form is in api/machine_json.hpp. Pure data; any thread.
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "description/host_cpu.hpp"
#include "description/tuning.hpp"

namespace doppel::description {

enum class Engine : std::uint8_t { Auto, Kvm, Translator, Interpreter };

/// What the guest's clocks follow.
enum class TimeMode : std::uint8_t {
    Real,    // the host's
    Virtual, // executed instructions, one per nanosecond: every run is the same
};

enum class ConsoleKind : std::uint8_t {
    Stdio,  // the terminal of `doppel run`, relayed through a descriptor that it passes on
    Pty,    // a new pseudo-terminal, its name is printed
    File,   // output appended to a file, no input
    Socket, // a listening unix socket, one client at a time
    None,
};

struct Console {
    ConsoleKind kind = ConsoleKind::Stdio;
    std::string path; // of File and Socket
};

/// What the machine starts with. The kernel's format is recognised by its content: Linux bzImage,
/// ELF with a PVH note, multiboot 1, raw boot sector.
struct Boot {
    std::string kernel;               // path
    std::string initrd;               // path or empty
    std::string command_line;         // at most kMaxCommandLine bytes
    std::vector<std::string> modules; // multiboot modules: "path arguments…"
};

/// What unlocks encrypted disks: the content of a file, which is no part of the description.
struct Secret {
    std::string id;
    std::string file;
    std::string format = "raw"; // or base64
};

/// Names and values of options that another module knows.
using Options = std::map<std::string, std::string, std::less<>>;

/// A disk behind virtio-blk.
struct Disk {
    std::string path; // or the URL of an NBD export
    std::string format = "raw";
    bool read_only = false;
    std::string serial;              // at most kMaxSerial characters
    std::string cache = "writeback"; // writeback, writethrough, none, directsync, unsafe
    std::string address;             // "00:08.0": bus, device, function of its PCI function
    Options options{};               // how the format is opened: "encrypt.key-secret"
    Options limits{};                // rates, see block/filter: "iops-total", "bps-write-max"
};

enum class NetKind : std::uint8_t {
    User, // a network of the guest's own within the VM's process; needs no rights
};

/// A network card, virtio-net, and what it leads to.
struct Net {
    NetKind kind = NetKind::User;
    std::string mac;                    // "52:54:00:12:34:56"; assigned when empty
    std::string address;                // of its PCI function; assigned when empty
    std::uint32_t mtu = 1500;           // bytes, kMinMtu to kMaxMtu
    std::string subnet = "10.0.2.0/24"; // see parse_subnet()
    bool ipv6 = true;
    bool restricted = false;             // the guest reaches nothing beyond its forwards
    std::string hostname{};              // that DHCP gives out; none when empty
    std::vector<std::string> forwards{}; // see parse_forward()
};

/// The console device, virtio-console; Linux calls it hvc0.
struct VirtioConsole {
    bool present = false;
    std::string address = "00:07.0";
    Console console{.kind = ConsoleKind::None, .path = {}};
};

/// The entropy device, virtio-rng.
struct Rng {
    bool present = false;
    std::string address = "00:02.0";
};

inline constexpr std::size_t kMaxSerial = 20;
inline constexpr std::uint32_t kMinMtu = 1280; // of IPv6, RFC 8200 §5
inline constexpr std::uint32_t kMaxMtu = 65520;
inline constexpr std::size_t kMaxCommandLine = 2047;
inline constexpr std::uint32_t kMaxCpus = 16;
inline constexpr std::uint32_t kMinCacheMib = 2;
inline constexpr std::uint32_t kMaxCacheMib = 1024;
inline constexpr std::uint64_t kMinMemoryBytes = 2ull << 20;
inline constexpr std::uint64_t kMaxMemoryBytes = 1ull << 40;

/// The translator, for those who work on it.
struct Translation {
    Tuning tuning;
    std::string jit_dump;    // directory for a jitdump file of Linux perf
    std::uint64_t chaos = 0; // seed of disturbances, to test the translator; 0: none
    /// Room for translated code, which takes memory as it fills; 2 with disturbances.
    std::uint32_t cache_mib = 128;
};

/// Where the guest spends its time, written when the VM ends.
struct Profiling {
    std::string path;                 // empty: nobody wants to know
    std::vector<std::string> symbols; // files that name guest addresses
};

struct Machine {
    std::string board = "pc-1.0"; // frozen: its defaults never change under this name
    std::string name = "doppel";
    std::uint64_t memory_bytes = 512ull << 20;
    std::uint32_t cpus = 1;
    std::string cpu_model = default_cpu_model();
    Engine engine = Engine::Auto;
    TimeMode time = TimeMode::Real;
    Translation translation;
    Boot boot;
    Console console;
    std::vector<Secret> secrets;
    std::vector<Disk> disks;
    std::vector<Net> nets;
    Rng rng;
    VirtioConsole virtio_console;
    /// Port of the isa-debug-exit device; none when empty.
    std::optional<std::uint16_t> debug_exit_port;
    bool reboot = true;    // false: the guest's reset ends the VM
    bool checking = false; // every code block of the translator is repeated by the interpreter;
                           // needs virtual time
    bool stats = false;    // print counters at exit
    Profiling profiling;
};

/// Checks ranges and names (not files). Errors: InvalidArgument with `field` set.
base::Result<void> validate(const Machine& machine);
/// Gives every device without an address one of its own: disks from 00:08.0 on, network cards from
/// 00:03.0 on, and their MAC addresses. What stands in a description is final, so that a guest
/// finds its devices where they were.
base::Result<void> assign_addresses(Machine& machine);

/// Place of a function on the first bus.
struct FunctionAddress {
    std::uint8_t device = 0;   // 1 to 31
    std::uint8_t function = 0; // 0 to 7
    auto operator<=>(const FunctionAddress&) const = default;
};
/// "00:08.0".
std::optional<FunctionAddress> parse_address(std::string_view text);

const char* engine_name(Engine engine);
std::optional<Engine> parse_engine(std::string_view name);
const char* time_mode_name(TimeMode mode);
std::optional<TimeMode> parse_time_mode(std::string_view name);
const char* net_kind_name(NetKind kind);
std::optional<NetKind> parse_net_kind(std::string_view name);
const char* console_kind_name(ConsoleKind kind);
std::optional<ConsoleKind> parse_console_kind(std::string_view name);

/// "512M", "2G", "65536K", "1048576" (bytes), with an optional B or iB; case does not matter.
base::Result<std::uint64_t> parse_size(std::string_view text);
/// The shortest exact form parse_size() reads: "512M".
std::string format_size(std::uint64_t bytes);

} // namespace doppel::description
