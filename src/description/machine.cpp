// SPDX-License-Identifier: Apache-2.0
#include "description/machine.hpp"

#include <array>
#include <cctype>
#include <charconv>
#include <utility>

#include <fmt/core.h>

#include "description/cpu_model.hpp"

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

Result<void> validate_time(const Machine& machine) {
    if (machine.time == TimeMode::Virtual && machine.engine == Engine::Kvm)
        return invalid("time", "the engine kvm counts no instructions, so it has no virtual time",
                       "leave out --engine, or use --engine translator");
    return {};
}

Result<void> validate_console(const Console& console) {
    const bool needs_path =
        console.kind == ConsoleKind::File || console.kind == ConsoleKind::Socket;
    if (needs_path && console.path.empty())
        return invalid("console.path",
                       fmt::format("console '{}' needs a path", console_kind_name(console.kind)));
    return {};
}

} // namespace

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
    return validate_console(machine.console);
}

const char* engine_name(Engine engine) { return name_of(kEngines, engine); }
std::optional<Engine> parse_engine(std::string_view name) { return key_of<Engine>(kEngines, name); }
const char* time_mode_name(TimeMode mode) { return name_of(kTimeModes, mode); }
std::optional<TimeMode> parse_time_mode(std::string_view name) {
    return key_of<TimeMode>(kTimeModes, name);
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
