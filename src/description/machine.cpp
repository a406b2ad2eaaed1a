// SPDX-License-Identifier: Apache-2.0
#include "description/machine.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <set>
#include <utility>

#include <fmt/core.h>

#include "description/cpu_model.hpp"
#include "description/network.hpp"

namespace doppel::description {

using base::Errc;
using base::Error;
using base::Result;

namespace {

std::unexpected<Error> invalid(std::string field, std::string text, std::string hint = {}) {
    return std::unexpected(
        Error{Errc::InvalidArgument, 0, std::move(text), std::move(field), std::move(hint)});
}

constexpr std::array<std::pair<Engine, const char*>, 4> kEngines{{
    {Engine::Auto, "auto"},
    {Engine::Kvm, "kvm"},
    {Engine::Translator, "translator"},
    {Engine::Interpreter, "interpreter"},
}};

constexpr std::array<std::pair<TimeMode, const char*>, 2> kTimeModes{{
    {TimeMode::Real, "real"},
    {TimeMode::Virtual, "virtual"},
}};

constexpr std::array<std::pair<ConsoleKind, const char*>, 5> kConsoles{{
    {ConsoleKind::Stdio, "stdio"},
    {ConsoleKind::Pty, "pty"},
    {ConsoleKind::File, "file"},
    {ConsoleKind::Socket, "socket"},
    {ConsoleKind::None, "none"},
}};

constexpr std::array<std::pair<NetKind, const char*>, 1> kNetKinds{{
    {NetKind::User, "user"},
}};

template <typename Table> auto name_of(const Table& table, auto key) {
    for (const auto& [value, name] : table)
        if (value == key)
            return name;
    return "?";
}

template <typename Key, typename Table>
std::optional<Key> key_of(const Table& table, std::string_view wanted) {
    for (const auto& [value, name] : table)
        if (wanted == name)
            return value;
    return std::nullopt;
}

/// Blocks are compared by their instruction counts, which only virtual time has.
Result<void> validate_checking(const Machine& machine) {
    if (!machine.checking)
        return {};
    if (machine.engine != Engine::Auto && machine.engine != Engine::Translator)
        return invalid("engine",
                       fmt::format("engine '{}' cannot be checked", engine_name(machine.engine)),
                       "the checking mode compares the translator with the interpreter");
    if (machine.time != TimeMode::Virtual)
        return invalid("time", "the checking mode does not run in real time",
                       "use virtual time with it");
    return {};
}

Result<void> validate_profiling(const Machine& machine) {
    if (machine.profiling.path.empty() && !machine.profiling.symbols.empty())
        return invalid("profiling.symbols", "symbols are for a profile, and there is none",
                       "name a file for the profile too");
    if (!machine.profiling.path.empty() && machine.engine == Engine::Kvm)
        return invalid("profiling.path", "the engine kvm makes no profile",
                       "use the engine translator");
    return {};
}

Result<void> validate_time(const Machine& machine) {
    if (machine.time == TimeMode::Virtual && machine.engine == Engine::Kvm)
        return invalid("time", "the engine kvm counts no instructions, so it has no virtual time",
                       "leave out --engine, or use --engine translator");
    const bool has_virtio = !machine.disks.empty() || !machine.nets.empty() ||
                            machine.rng.present || machine.virtio_console.present;
    if (machine.time == TimeMode::Virtual && has_virtio)
        return invalid("time",
                       "disks, networks, entropy and virtio consoles come in the host's time, so "
                       "not in virtual time",
                       "leave out --disk, --net, --rng and --virtio-console, or --time virtual "
                       "and --check");
    return {};
}

Result<void> validate_console(const Console& console, const char* field) {
    const bool needs_path =
        console.kind == ConsoleKind::File || console.kind == ConsoleKind::Socket;
    if (needs_path && console.path.empty())
        return invalid(field,
                       fmt::format("console '{}' needs a path", console_kind_name(console.kind)));
    return {};
}

Result<void> validate_virtio_console(const Machine& machine) {
    if (!machine.virtio_console.present)
        return {};
    const auto& console = machine.virtio_console.console;
    if (console.kind == ConsoleKind::Stdio && machine.console.kind == ConsoleKind::Stdio)
        return invalid("virtio_console", "two consoles want this terminal",
                       "give one of --console and --virtio-console another place");
    return validate_console(console, "virtio_console.console.path");
}

constexpr unsigned kFirstNetDevice = 3, kEndOfNetDevices = 7, kFirstDiskDevice = 8, kDevices = 32;
constexpr std::size_t kMaxHostname = 64;
constexpr std::array<std::string_view, 5> kCacheModes{"writeback", "writethrough", "none",
                                                      "directsync", "unsafe"};

Result<void> validate_disk(const Disk& disk, const std::string& field) {
    if (disk.path.empty())
        return invalid(field + ".path", "a disk has no file");
    if (disk.serial.size() > kMaxSerial)
        return invalid(field + ".serial",
                       fmt::format("serial '{}' of disk '{}' has {} characters", disk.serial,
                                   disk.path, disk.serial.size()),
                       fmt::format("keep it to {}", kMaxSerial));
    if (std::ranges::find(kCacheModes, disk.cache) == kCacheModes.end())
        return invalid(
            field + ".cache",
            fmt::format("cache mode '{}' of disk '{}' is unknown", disk.cache, disk.path),
            "use writeback, writethrough, none, directsync or unsafe");
    return {};
}

/// Every secret that a disk is opened with is there.
Result<void> validate_secrets(const Machine& machine) {
    for (std::size_t i = 0; i < machine.secrets.size(); ++i) {
        const auto& secret = machine.secrets[i];
        const auto field = fmt::format("secrets[{}]", i);
        if (secret.id.empty() || secret.file.empty())
            return invalid(field, "a secret wants an id and a file");
        if (secret.format != "raw" && secret.format != "base64")
            return invalid(
                field + ".format",
                fmt::format("format '{}' of secret '{}' is unknown", secret.format, secret.id),
                "use raw or base64");
        if (std::ranges::count(machine.secrets, secret.id, &Secret::id) > 1)
            return invalid(field + ".id", fmt::format("two secrets have the id '{}'", secret.id));
    }
    for (std::size_t i = 0; i < machine.disks.size(); ++i)
        for (const auto& [name, value] : machine.disks[i].options)
            if (name.ends_with("key-secret") &&
                std::ranges::find(machine.secrets, value, &Secret::id) == machine.secrets.end())
                return invalid(fmt::format("disks[{}].options", i),
                               fmt::format("disk '{}' wants the secret '{}', which is not there",
                                           machine.disks[i].path, value),
                               fmt::format("add --object secret,id={},file=FILE", value));
    return {};
}

/// The error of a part, with its place in the description.
template <typename T> Result<void> valid_part(const Result<T>& part, std::string field) {
    if (part)
        return {};
    auto error = part.error();
    error.field = std::move(field);
    return std::unexpected(std::move(error));
}

Result<void> validate_net(const Net& net, const std::string& field) {
    DOPPEL_TRY_VOID(valid_part(parse_mac(net.mac), field + ".mac"));
    DOPPEL_TRY_VOID(valid_part(parse_subnet(net.subnet), field + ".subnet"));
    for (const auto& forward : net.forwards)
        DOPPEL_TRY_VOID(valid_part(parse_forward(forward), field + ".forwards"));
    if (net.mtu < kMinMtu || net.mtu > kMaxMtu)
        return invalid(field + ".mtu", fmt::format("MTU {} is not possible", net.mtu),
                       fmt::format("give {} to {}", kMinMtu, kMaxMtu));
    if (net.hostname.size() > kMaxHostname)
        return invalid(
            field + ".hostname",
            fmt::format("host name '{}' has {} characters", net.hostname, net.hostname.size()),
            fmt::format("keep it to {}", kMaxHostname));
    return {};
}

/// Calls visit(field, address) for every device that has a place on the PCI bus.
template <typename M, typename Visit> void each_address(M& machine, Visit&& visit) {
    if (machine.rng.present)
        visit(std::string{"rng.address"}, machine.rng.address);
    if (machine.virtio_console.present)
        visit(std::string{"virtio_console.address"}, machine.virtio_console.address);
    for (std::size_t i = 0; i < machine.nets.size(); ++i)
        visit(fmt::format("nets[{}].address", i), machine.nets[i].address);
    for (std::size_t i = 0; i < machine.disks.size(); ++i)
        visit(fmt::format("disks[{}].address", i), machine.disks[i].address);
}

Result<void> validate_addresses(const Machine& machine) {
    std::set<FunctionAddress> taken;
    Result<void> outcome{};
    each_address(machine, [&](const std::string& field, const std::string& text) {
        const auto address = parse_address(text);
        if (!address)
            outcome = invalid(field, fmt::format("'{}' is not a place for a PCI function", text),
                              "write it like 00:08.0, with a device of 01 to 1f");
        else if (!taken.insert(*address).second)
            outcome = invalid(field, fmt::format("two devices want the PCI address {}", text));
    });
    return outcome;
}

} // namespace

std::optional<FunctionAddress> parse_address(std::string_view text) {
    unsigned device = 0;
    const bool shaped = text.size() == 7 && text.starts_with("00:") && text[5] == '.' &&
                        text[6] >= '0' && text[6] <= '7';
    if (!shaped)
        return std::nullopt;
    const auto [end, error] = std::from_chars(text.data() + 3, text.data() + 5, device, 16);
    if (error != std::errc{} || end != text.data() + 5 || device == 0 || device >= kDevices)
        return std::nullopt;
    return FunctionAddress{static_cast<std::uint8_t>(device),
                           static_cast<std::uint8_t>(text[6] - '0')};
}

namespace {

/// Gives devices of one kind their places, from `first` up to below `end`.
template <typename Devices>
Result<void> assign_places(Devices& devices, std::set<std::string>& taken, unsigned first,
                           unsigned end, const char* field) {
    auto next = first;
    for (auto& device : devices) {
        while (device.address.empty() && next < end) {
            auto address = fmt::format("00:{:02x}.0", next++);
            if (taken.insert(address).second)
                device.address = std::move(address);
        }
        if (device.address.empty())
            return invalid(field, fmt::format("{} {} do not fit", devices.size(), field),
                           fmt::format("give at most {}, or say where with addr=", end - first));
    }
    return {};
}

/// From 52:54:00:12:34:56 on, each once; 52:54:00 is what virtual machines use.
void assign_macs(std::vector<Net>& nets) {
    std::set<std::string> taken;
    for (const auto& net : nets)
        taken.insert(net.mac);
    unsigned last = 0x56;
    for (auto& net : nets)
        while (net.mac.empty()) {
            auto mac = fmt::format("52:54:00:12:34:{:02x}", last++);
            if (taken.insert(mac).second)
                net.mac = std::move(mac);
        }
}

} // namespace

Result<void> assign_addresses(Machine& machine) {
    std::set<std::string> taken;
    each_address(machine, [&](const auto&, const std::string& text) { taken.insert(text); });
    DOPPEL_TRY_VOID(assign_places(machine.nets, taken, kFirstNetDevice, kEndOfNetDevices, "nets"));
    DOPPEL_TRY_VOID(assign_places(machine.disks, taken, kFirstDiskDevice, kDevices, "disks"));
    assign_macs(machine.nets);
    return {};
}

Result<void> validate(const Machine& machine) {
    if (machine.board != "pc-1.0")
        return invalid("board", fmt::format("board '{}' is unknown", machine.board),
                       "this build knows pc-1.0");
    if (machine.cpus < 1 || machine.cpus > kMaxCpus)
        return invalid("cpus", fmt::format("{} CPUs cannot be made", machine.cpus),
                       fmt::format("give 1 to {}", kMaxCpus));
    if (machine.memory_bytes < kMinMemoryBytes || machine.memory_bytes > kMaxMemoryBytes ||
        machine.memory_bytes % (1u << 20) != 0)
        return invalid(
            "memory_bytes",
            fmt::format("memory of {} is not possible", format_size(machine.memory_bytes)),
            "give whole mebibytes, 2M to 1024G");
    const std::uint32_t cache = machine.translation.cache_mib;
    if (cache < kMinCacheMib || cache > kMaxCacheMib)
        return invalid("translation.cache_mib", fmt::format("a code cache of {} MiB", cache),
                       fmt::format("give {} to {}", kMinCacheMib, kMaxCacheMib));
    if (machine.boot.kernel.empty())
        return invalid("boot.kernel", "there is nothing to boot", "give a kernel");
    if (machine.boot.command_line.size() > kMaxCommandLine)
        return invalid(
            "boot.command_line",
            fmt::format("the kernel command line has {} bytes", machine.boot.command_line.size()),
            fmt::format("keep it to {}", kMaxCommandLine));
    if (machine.name.empty() || machine.name.size() > 64)
        return invalid("name", "the name must have 1 to 64 characters");
    if (auto model = find_cpu_model(machine.cpu_model); !model) {
        auto error = std::move(model).error();
        error.field = "cpu_model";
        return std::unexpected(std::move(error));
    }
    DOPPEL_TRY_VOID(validate_checking(machine));
    DOPPEL_TRY_VOID(validate_time(machine));
    DOPPEL_TRY_VOID(validate_profiling(machine));
    DOPPEL_TRY_VOID(validate_console(machine.console, "console.path"));
    DOPPEL_TRY_VOID(validate_virtio_console(machine));
    DOPPEL_TRY_VOID(validate_secrets(machine));
    for (std::size_t i = 0; i < machine.disks.size(); ++i)
        DOPPEL_TRY_VOID(validate_disk(machine.disks[i], fmt::format("disks[{}]", i)));
    for (std::size_t i = 0; i < machine.nets.size(); ++i)
        DOPPEL_TRY_VOID(validate_net(machine.nets[i], fmt::format("nets[{}]", i)));
    return validate_addresses(machine);
}

const char* engine_name(Engine engine) { return name_of(kEngines, engine); }
std::optional<Engine> parse_engine(std::string_view name) { return key_of<Engine>(kEngines, name); }
const char* time_mode_name(TimeMode mode) { return name_of(kTimeModes, mode); }
std::optional<TimeMode> parse_time_mode(std::string_view name) {
    return key_of<TimeMode>(kTimeModes, name);
}
const char* net_kind_name(NetKind kind) { return name_of(kNetKinds, kind); }
std::optional<NetKind> parse_net_kind(std::string_view name) {
    return key_of<NetKind>(kNetKinds, name);
}
const char* console_kind_name(ConsoleKind kind) { return name_of(kConsoles, kind); }
std::optional<ConsoleKind> parse_console_kind(std::string_view name) {
    return key_of<ConsoleKind>(kConsoles, name);
}

Result<std::uint64_t> parse_size(std::string_view text) {
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    std::string unit{end, static_cast<std::size_t>(text.data() + text.size() - end)};
    for (auto& c : unit)
        c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    if (unit.size() > 1 && unit.back() == 'B')
        unit.pop_back();
    if (unit.size() == 2 && unit.back() == 'I')
        unit.pop_back();
    constexpr std::string_view kUnits = "BKMGT";
    const auto power = unit.empty() ? 0 : kUnits.find(unit);
    const std::string hint = "write it like 512M or 2G";
    if (error != std::errc{} || unit.size() > 1 || power == std::string_view::npos)
        return base::fail(Errc::InvalidArgument, fmt::format("'{}' is not a size", text), hint);
    const auto shift = static_cast<unsigned>(power * 10);
    if (number > UINT64_MAX >> shift)
        return base::fail(Errc::OutOfRange, fmt::format("size '{}' is too large", text), hint);
    return number << shift;
}

std::string format_size(std::uint64_t bytes) {
    constexpr std::string_view kUnits = "BKMGT";
    std::size_t power = 0;
    while (power + 1 < kUnits.size() && bytes != 0 && bytes % 1024 == 0) {
        bytes /= 1024;
        ++power;
    }
    return power == 0 ? fmt::format("{}", bytes) : fmt::format("{}{}", bytes, kUnits[power]);
}

} // namespace doppel::description
