// SPDX-License-Identifier: Apache-2.0
#include "apps/doppel/run_options.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/core.h>

#include "api/machine_json.hpp"
#include "apps/doppel/device_options.hpp"
#include "description/cpu_model.hpp"
#include "vmm/state_file/state_file.hpp"

namespace doppel::cli {

using base::Errc;
using base::Error;
using base::Result;
using description::Machine;

namespace {

constexpr std::uint16_t kDefaultDebugExitPort = 0xf4; // where the known test kernels look for it

/// An error that begins with the flag it came from.
template <typename T> Result<T> of_flag(const char* flag, Result<T> result) {
    if (result)
        return result;
    return std::unexpected(std::move(result).error().with_context(flag));
}

Result<std::string> readable_file(const std::string& path, const char* what) {
    struct stat info{};
    if (::stat(path.c_str(), &info) != 0)
        return base::fail_errno(errno, fmt::format("cannot open {} '{}'", what, path));
    if (S_ISDIR(info.st_mode))
        return base::fail(Errc::InvalidArgument, fmt::format("{} '{}' is a directory", what, path),
                          "give a file");
    if (::access(path.c_str(), R_OK) != 0)
        return base::fail_errno(errno, fmt::format("cannot read {} '{}'", what, path));
    if (info.st_size == 0 && S_ISREG(info.st_mode))
        return base::fail(Errc::InvalidArgument, fmt::format("{} '{}' is empty", what, path));
    return path;
}

Result<description::Console> parse_console(const std::string& text) {
    const auto colon = text.find(':');
    const auto kind = description::parse_console_kind(text.substr(0, colon));
    description::Console console;
    if (colon != std::string::npos)
        console.path = text.substr(colon + 1);
    const bool takes_path =
        kind == description::ConsoleKind::File || kind == description::ConsoleKind::Socket;
    if (!kind || takes_path != (colon != std::string::npos) || takes_path == console.path.empty())
        return base::fail(Errc::InvalidArgument, fmt::format("console '{}' is unknown", text),
                          "use stdio, pty, file:PATH, socket:PATH or none");
    console.kind = *kind;
    return console;
}

Result<std::uint16_t> parse_port(const std::string& text) {
    const bool hex = text.starts_with("0x") || text.starts_with("0X");
    const char* begin = text.data() + (hex ? 2 : 0);
    const char* end = text.data() + text.size();
    std::uint16_t port = 0;
    const auto [stop, error] = std::from_chars(begin, end, port, hex ? 16 : 10);
    if (error != std::errc{} || stop != end)
        return base::fail(Errc::InvalidArgument, fmt::format("'{}' is not an I/O port", text),
                          "give a number such as 0xf4");
    return port;
}

/// The description names its own members; a person typed flags.
Error with_flag(Error error) {
    constexpr std::array<std::pair<std::string_view, const char*>, 12> kFlags{{
        {"disks", "--disk"},
        {"secrets", "--object"},
        {"nets", "--net"},
        {"cpus", "--cpus"},
        {"memory_bytes", "--memory"},
        {"cpu_model", "--cpu"},
        {"boot.command_line", "--append"},
        {"name", "--name"},
        {"console.path", "--console"},
        {"virtio_console", "--virtio-console"},
        {"engine", "--engine"},
        {"time", "--time"},
    }};
    for (const auto& [field, flag] : kFlags)
        if (field == error.field.substr(0, error.field.find('[')))
            return std::move(error).with_context(flag);
    return error;
}

Result<std::vector<description::Secret>> secrets_of(const RunOptions& o) {
    std::vector<description::Secret> secrets;
    for (const auto& text : o.objects)
        secrets.push_back(DOPPEL_TRY(parse_secret(text)));
    return secrets;
}

Result<std::vector<description::Disk>> disks_of(const RunOptions& o) {
    std::vector<description::Disk> disks;
    for (const auto& text : o.disks) {
        disks.push_back(DOPPEL_TRY(parse_disk(text)));
        DOPPEL_TRY_VOID(check_disk(disks.back()));
    }
    return disks;
}

Result<std::vector<description::Net>> nets_of(const RunOptions& o) {
    std::vector<description::Net> nets;
    for (const auto& text : o.nets) {
        auto net = DOPPEL_TRY(parse_net(text));
        if (net)
            nets.push_back(std::move(*net));
        else if (o.nets.size() > 1)
            return base::fail(Errc::InvalidArgument, "'none' contradicts the other networks",
                              "leave one of them out");
    }
    return nets;
}

bool is_given(const RunOptions& o, const char* flag) {
    return o.command != nullptr && o.command->count(flag) != 0;
}

/// The terminal is that of the serial port, unless the other console wants it and nobody says.
Result<void> set_consoles(const RunOptions& o, Machine& machine) {
    machine.console = DOPPEL_TRY(of_flag("--console", parse_console(o.console)));
    if (o.virtio_console.empty())
        return {};
    auto& other = machine.virtio_console;
    other.present = true;
    other.console = DOPPEL_TRY(of_flag("--virtio-console", parse_console(o.virtio_console)));
    if (other.console.kind == description::ConsoleKind::Stdio && !is_given(o, "--console"))
        machine.console = {description::ConsoleKind::None, {}};
    return {};
}

std::string model_names() {
    std::string names;
    for (const auto& model : description::cpu_models())
        names += (names.empty() ? "" : ", ") + model.name;
    return names;
}

Result<description::Engine> engine_of(const RunOptions& o) {
    const auto engine = description::parse_engine(o.engine);
    if (!engine)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("--engine: engine '{}' is unknown", o.engine),
                          "use auto, kvm, translator or interpreter");
    return *engine;
}

Result<description::Profiling> profiling_of(const RunOptions& o) {
    description::Profiling profiling{.path = o.profile, .symbols = o.profile_symbols};
    if (is_given(o, "--profile")) {
        struct stat info{};
        const auto parent = std::filesystem::absolute(o.profile).parent_path();
        if (o.profile.empty() || (::stat(o.profile.c_str(), &info) == 0 && S_ISDIR(info.st_mode)))
            return base::fail(Errc::InvalidArgument,
                              fmt::format("--profile: '{}' is no file", o.profile), "name a file");
        if (::access(parent.c_str(), W_OK | X_OK) != 0)
            return base::fail_errno(
                errno, fmt::format("--profile: cannot write into '{}'", parent.string()));
    }
    for (const auto& symbols : profiling.symbols)
        DOPPEL_TRY(of_flag("--profile-symbols", readable_file(symbols, "symbols")));
    return profiling;
}

/// A saved machine stays what it was; these options say how it runs here.
Result<void> check_restore_options(const CLI::App& command) {
    constexpr std::array kMayChange{
        "--restore",         "--restore-clock", "--engine",     "--console", "--name",
        "--no-reboot",       "--check",         "--translator", "--stats",   "--profile",
        "--profile-symbols", "--dry-run",       "--log",        "--help"};
    for (const auto* option : command.get_options())
        if (option->count() != 0 &&
            std::ranges::find(kMayChange, option->get_name()) == kMayChange.end())
            return base::fail(
                Errc::InvalidArgument,
                fmt::format("{} cannot be given with --restore: the state file says what the "
                            "machine is",
                            option->get_name()),
                "leave it out");
    return {};
}

Result<Machine> restored_machine(const RunOptions& o) {
    DOPPEL_TRY_VOID(check_restore_options(*o.command));
    const auto file = DOPPEL_TRY(of_flag("--restore", vmm::StateFile::open(o.restore)));
    auto saved = api::machine_from_json(file.vm().machine);
    if (!saved)
        return std::unexpected(std::move(saved).error().with_context(
            fmt::format("--restore: state file '{}'", o.restore)));
    auto& machine = *saved;
    if (is_given(o, "--engine"))
        machine.engine = DOPPEL_TRY(engine_of(o));
    if (is_given(o, "--console"))
        machine.console = DOPPEL_TRY(of_flag("--console", parse_console(o.console)));
    if (is_given(o, "--name"))
        machine.name = o.name;
    machine.translation = {};
    if (is_given(o, "--translator"))
        machine.translation = DOPPEL_TRY(of_flag("--translator", parse_translation(o.translator)));
    machine.reboot = machine.reboot && !o.no_reboot;
    machine.checking = o.check;
    machine.stats = o.stats;
    machine.profiling = DOPPEL_TRY(profiling_of(o));
    if (auto valid = description::validate(machine); !valid)
        return std::unexpected(with_flag(std::move(valid).error()));
    return machine;
}

/// What runs the guest, and how.
void add_execution_options(CLI::App& command, RunOptions& o) {
    command
        .add_option("--engine", o.engine, "what runs the guest: auto, kvm, translator, interpreter")
        ->type_name("ENGINE")
        ->capture_default_str();
    command
        .add_option("--time", o.time,
                    "what the guest's clocks follow: 'real', the host's, which is what they do "
                    "unless --check is given, or 'virtual', the instructions executed, one a "
                    "nanosecond: idle time is skipped, vCPUs take turns, and the same machine runs "
                    "the same way every time")
        ->type_name("MODE");
    command
        .add_option(
            "--translator", o.translator,
            "for work on the translator: optimizations to leave out (no-stack-page, "
            "no-stack-pointer, no-shared-checks, no-groups, no-flags, no-flag-operands, no-slots, "
            "no-lend, "
            "no-links, no-branches, no-shared-branches, no-far-links, no-paired-returns, "
            "no-fixed-code, no-huge-code, no-cold-apart, no-long-blocks, no-loops, no-direct), "
            "direct=always for users' code on the host's CPU even where that is slower, "
            "loop-threshold=JUMPS to its beginning after which a loop is translated "
            "again, busy-calls=CALLS of checks until the page of code that asks has its own, "
            "chaos=SEED for disturbances that no guest may notice (slow), cache=MIB of "
            "room for translated code (128 unless given), and "
            "jitdump=DIRECTORY for a file by which Linux perf knows translated code")
        ->type_name("LIST");
    command.add_flag(
        "--check", o.check,
        "run every code block of the translator in the interpreter too and compare, in virtual "
        "time (slow)");
}

void add_boot_options(CLI::App& command, RunOptions& o) {
    command
        .add_option("-k,--kernel", o.kernel,
                    "kernel to boot: Linux bzImage, ELF with PVH entry, multiboot, boot sector")
        ->type_name("FILE");
    command.add_option("-i,--initrd", o.initrd, "initial ramdisk")->type_name("FILE");
    command.add_option("-a,--append", o.append, "kernel command line")->type_name("TEXT");
    command.add_option("--module", o.modules, "multiboot module, with its arguments; repeatable")
        ->type_name("'FILE ARGS'")
        ->expected(1)
        ->take_all();
}

void add_device_options(CLI::App& command, RunOptions& o) {
    command
        .add_option("--disk", o.disks,
                    "disk behind virtio-blk: FILE[,format=raw][,readonly=on][,serial=TEXT]"
                    "[,cache=MODE][,iops=N][,bps=N][,encrypt.key-secret=ID][,addr=00:08.0]; FILE "
                    "may be an nbd:// URL or json:{…}; repeatable")
        ->type_name("FILE[,…]")
        ->expected(1)
        ->take_all();
    command
        .add_option("--object", o.objects,
                    "what unlocks an encrypted disk: secret,id=ID,file=FILE[,format=base64]; "
                    "repeatable")
        ->type_name("secret,…")
        ->expected(1)
        ->take_all();
    command
        .add_option("--net", o.nets,
                    "network card (virtio-net): none, which is so unless given, or "
                    "user[,forward=tcp:HOSTPORT:GUESTPORT …][,mac=MAC][,subnet=10.0.2.0/24]"
                    "[,hostname=NAME][,mtu=N][,ipv6=off][,restrict=on][,addr=00:03.0]; repeatable")
        ->type_name("KIND[,…]")
        ->expected(1)
        ->take_all();
    command
        .add_option("--virtio-console", o.virtio_console,
                    "console device (virtio-console), hvc0 of Linux: where as of --console; with "
                    "stdio, the serial port goes nowhere unless --console says")
        ->type_name("WHERE");
    command.add_flag("--rng", o.rng, "entropy device (virtio-rng)");
}

void add_restore_options(CLI::App& command, RunOptions& o) {
    command
        .add_option("--restore", o.restore,
                    "go on with a VM that 'doppel save' has saved, instead of booting one")
        ->type_name("FILE");
    command
        .add_option("--restore-clock", o.restore_clock,
                    "the restored guest's time: catch-up (what has passed meanwhile) or continue")
        ->type_name("HOW")
        ->capture_default_str();
}

} // namespace

void add_run_options(CLI::App& command, RunOptions& o) {
    o.command = &command;
    add_boot_options(command, o);
    command.add_option("-m,--memory", o.memory, "guest memory, for example 512M or 2G")
        ->type_name("SIZE")
        ->capture_default_str();
    command.add_option("-c,--cpus", o.cpus, "number of vCPUs, 1 to 16")
        ->type_name("N")
        ->capture_default_str();
    command
        .add_option("--cpu", o.cpu,
                    "CPU model: " + model_names() +
                        ", host; behind it what is left out, as in x86-64-v3,-sha")
        ->type_name("MODEL")
        ->capture_default_str();
    add_execution_options(command, o);
    command
        .add_option("--console", o.console,
                    "first serial port: stdio, pty, file:PATH, socket:PATH or none")
        ->type_name("WHERE")
        ->capture_default_str();
    command
        .add_option("--name", o.name,
                    "name of the VM, for 'doppel ls' and the like; doppel, doppel-2 … unless given")
        ->type_name("NAME");
    add_device_options(command, o);
    add_restore_options(command, o);
    command.add_flag("--no-reboot", o.no_reboot, "end the VM when the guest reboots");
    command
        .add_option_function<std::string>(
            "--debug-exit",
            [&o](const std::string& port) {
                o.debug_exit = true;
                o.debug_exit_port = port;
            },
            "device whose port ends the VM with code (value << 1) | 1; port 0xf4 unless given")
        ->type_name("PORT")
        ->expected(0, 1);
    command.add_flag("--stats", o.stats, "print counters at exit");
    command
        .add_option("--profile", o.profile,
                    "at exit, write where the guest's CPU time went, as text for flame graphs: "
                    "samples of every vCPU that does not halt")
        ->type_name("FILE");
    command
        .add_option("--profile-symbols", o.profile_symbols,
                    "names for it: System.map, the guest's /proc/kallsyms, or what nm says of a "
                    "program; may be given more than once")
        ->type_name("FILE");
    command.add_flag("--dry-run", o.dry_run, "print the machine description (JSON) and exit");
    command.add_option("--log", o.log, "trace, debug, info, warning, error or off")
        ->type_name("LEVEL")
        ->capture_default_str();
}

Result<Machine> machine_of(const RunOptions& o) {
    if (!o.restore.empty())
        return restored_machine(o);
    if (o.kernel.empty())
        return base::fail(Errc::InvalidArgument, "--kernel is required",
                          "give a kernel to boot, or --restore with a saved VM");
    Machine machine;
    if (is_given(o, "--name"))
        machine.name = o.name;
    machine.boot.kernel = DOPPEL_TRY(of_flag("--kernel", readable_file(o.kernel, "kernel")));
    if (!o.initrd.empty())
        machine.boot.initrd =
            DOPPEL_TRY(of_flag("--initrd", readable_file(o.initrd, "initial ramdisk")));
    for (const auto& module : o.modules)
        DOPPEL_TRY(
            of_flag("--module", readable_file(module.substr(0, module.find(' ')), "module")));
    machine.boot.modules = o.modules;
    machine.boot.command_line = o.append;
    machine.memory_bytes = DOPPEL_TRY(of_flag("--memory", description::parse_size(o.memory)));
    machine.cpus = o.cpus;
    machine.cpu_model = o.cpu;
    machine.engine = DOPPEL_TRY(engine_of(o));
    const auto time =
        description::parse_time_mode(!o.time.empty() ? o.time : (o.check ? "virtual" : "real"));
    if (!time)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("--time: mode '{}' is unknown", o.time),
                          "use real or virtual");
    machine.time = *time;
    if (is_given(o, "--translator"))
        machine.translation = DOPPEL_TRY(of_flag("--translator", parse_translation(o.translator)));
    DOPPEL_TRY_VOID(set_consoles(o, machine));
    machine.secrets = DOPPEL_TRY(of_flag("--object", secrets_of(o)));
    machine.disks = DOPPEL_TRY(of_flag("--disk", disks_of(o)));
    machine.nets = DOPPEL_TRY(of_flag("--net", nets_of(o)));
    machine.rng.present = o.rng;
    if (o.debug_exit)
        machine.debug_exit_port =
            o.debug_exit_port.empty()
                ? kDefaultDebugExitPort
                : DOPPEL_TRY(of_flag("--debug-exit", parse_port(o.debug_exit_port)));
    machine.reboot = !o.no_reboot;
    machine.checking = o.check;
    machine.stats = o.stats;
    machine.profiling = DOPPEL_TRY(profiling_of(o));
    if (auto assigned = description::assign_addresses(machine); !assigned)
        return std::unexpected(with_flag(std::move(assigned).error()));
    if (auto valid = description::validate(machine); !valid)
        return std::unexpected(with_flag(std::move(valid).error()));
    return machine;
}

Result<LaunchOptions> launch_options_of(const RunOptions& options) {
    LaunchOptions launch;
    if (!base::parse_log_level(options.log, launch.log_level))
        return base::fail(Errc::InvalidArgument,
                          fmt::format("--log: level '{}' is unknown", options.log),
                          "use trace, debug, info, warning, error or off");
    if (options.restore_clock != "catch-up" && options.restore_clock != "continue")
        return base::fail(Errc::InvalidArgument,
                          fmt::format("--restore-clock: '{}' is unknown", options.restore_clock),
                          "use catch-up or continue");
    if (options.restore_clock == "continue" && options.restore.empty())
        return base::fail(Errc::InvalidArgument, "--restore-clock needs --restore");
    launch.restored_clock_continues = options.restore_clock == "continue";
    launch.state_file = options.restore;
    launch.name_is_stem = !is_given(options, "--name") && options.restore.empty();
    return launch;
}

} // namespace doppel::cli
