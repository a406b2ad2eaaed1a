// SPDX-License-Identifier: Apache-2.0
#include "apps/doppel/run_options.hpp"

#include <doctest/doctest.h>
#include <fmt/core.h>

#include <CLI/CLI.hpp>

#include "apps/doppel/terminal.hpp"

using namespace doppel;
using namespace doppel::cli;

namespace {

constexpr const char* kAnyFile = "/proc/self/exe";

base::Result<description::Machine> run(std::vector<std::string> words) {
    CLI::App app;
    RunOptions options;
    add_run_options(app, options);
    words.insert(words.end(), {"--kernel", kAnyFile});
    std::reverse(words.begin(), words.end()); // as CLI11 wants them
    app.parse(words);
    return machine_of(options);
}

std::string refused(const std::vector<std::string>& words) {
    const auto machine = run(words);
    REQUIRE_FALSE(machine);
    return machine.error().message();
}

std::string typed(EscapeFilter& filter, std::string_view text, EscapeFilter::Action& action) {
    std::string out;
    std::size_t used = 0;
    action = filter.feed(text, out, used);
    return out;
}

} // namespace

TEST_CASE("run: without options the defaults of the description hold") {
    const auto machine = run({});
    REQUIRE(machine);
    CHECK(machine->boot.kernel == kAnyFile);
    CHECK(machine->memory_bytes == description::Machine{}.memory_bytes);
    CHECK(machine->cpus == 1);
    CHECK(machine->reboot);
    CHECK_FALSE(machine->debug_exit_port);
    CHECK(machine->console.kind == description::ConsoleKind::Stdio);
    CHECK(machine->time == description::TimeMode::Real);
}

TEST_CASE("run: the virtio console and the serial port share one terminal") {
    using description::ConsoleKind;
    CHECK_FALSE(run({})->virtio_console.present);
    auto machine = run({"--virtio-console", "stdio"});
    REQUIRE(machine);
    CHECK(machine->virtio_console.present);
    CHECK(machine->virtio_console.console.kind == ConsoleKind::Stdio);
    CHECK(machine->console.kind == ConsoleKind::None);
    machine = run({"--virtio-console", "file:/tmp/x"});
    REQUIRE(machine);
    CHECK(machine->virtio_console.console.path == "/tmp/x");
    CHECK(machine->console.kind == ConsoleKind::Stdio);
    CHECK(run({"--virtio-console", "stdio", "--console", "pty"})->console.kind == ConsoleKind::Pty);
    CHECK(refused({"--virtio-console", "stdio", "--console", "stdio"}).find("two consoles") !=
          std::string::npos);
    CHECK(refused({"--virtio-console", "teletype"}).starts_with("--virtio-console: "));
    CHECK(refused({"--virtio-console", "pty", "--time", "virtual"}).find("virtio") !=
          std::string::npos);
}

TEST_CASE("run: networks as people write them") {
    const auto machine = run({"--net",
                              "user,forward=tcp:2222:22,forward=udp:0.0.0.0:53:5353,mtu=9000,"
                              "subnet=192.168.0.0/16,ipv6=off,restrict=on,hostname=box",
                              "--net", "user,mac=02:00:00:00:00:01,addr=00:1f.0", "--net", "user"});
    REQUIRE(machine);
    REQUIRE(machine->nets.size() == 3);
    const auto& first = machine->nets[0];
    CHECK(first.forwards ==
          std::vector<std::string>{"tcp:127.0.0.1:2222:22", "udp:0.0.0.0:53:5353"});
    CHECK(first.subnet == "192.168.0.0/16");
    CHECK(first.mtu == 9000);
    CHECK(first.hostname == "box");
    CHECK(first.restricted);
    CHECK_FALSE(first.ipv6);
    CHECK(first.mac == "52:54:00:12:34:56");
    CHECK(first.address == "00:03.0");
    CHECK(machine->nets[1].mac == "02:00:00:00:00:01");
    CHECK(machine->nets[1].address == "00:1f.0");
    CHECK(machine->nets[2].mac == "52:54:00:12:34:57");
    CHECK(machine->nets[2].address == "00:04.0");
    CHECK(run({"--net", "none"})->nets.empty());
    CHECK(run({})->nets.empty());
}

TEST_CASE("run: optimizations can be left out one by one") {
    const auto machine = run({"--translator", "no-groups,no-long-blocks,jitdump=/tmp"});
    REQUIRE(machine);
    CHECK_FALSE(machine->translation.tuning.groups);
    CHECK_FALSE(machine->translation.tuning.long_blocks);
    CHECK(machine->translation.tuning.flags);
    CHECK(machine->translation.jit_dump == "/tmp");
    CHECK(run({})->translation.tuning.groups);
    for (const auto& [name, member] : description::kTuningNames)
        CHECK_FALSE(run({"--translator", fmt::format("no-{}", name)})->translation.tuning.*member);
    CHECK(refused({"--translator", "no-magic"}).find("'no-magic' is unknown") != std::string::npos);
    CHECK(run({"--translator", "loop-threshold=1"})->translation.tuning.loop_threshold == 1);
    CHECK(run({"--translator", "busy-calls=7"})->translation.tuning.busy_calls == 7);
    for (const auto* bad : {"loop-threshold=0", "loop-threshold=", "loop-threshold=1x",
                            "busy-calls=0", "busy-calls=", "busy-calls=-1"})
        CHECK(refused({"--translator", bad}).find("is not a number above 0") != std::string::npos);
    CHECK(run({"--translator", "chaos=7"})->translation.chaos == 7);
    for (const char* const bad : {"chaos", "chaos=", "chaos=0", "chaos=-1", "chaos=7x"})
        CHECK(refused({"--translator", bad}).find("give a number from 1") != std::string::npos);
    CHECK(run({"--translator", "cache=4"})->translation.cache_mib == 4);
    for (const char* const bad : {"cache=", "cache=1", "cache=2G", "cache=4000"})
        CHECK(refused({"--translator", bad}).find("cache") != std::string::npos);
    CHECK(refused({"--translator", "jitdump="}).starts_with("--translator: 'jitdump='"));
}

TEST_CASE("run: networks that cannot be are refused by name") {
    const auto says = [](const std::string& net, const char* words) {
        const auto message = refused({"--net", net});
        CAPTURE(message);
        CHECK(message.starts_with("--net: "));
        CHECK(message.find(words) != std::string::npos);
    };
    says("token-ring", "'token-ring'");
    says("", "''");
    says("user,colour=red", "'colour'");
    says("user,forward=tcp:22", "'tcp:22'");
    says("user,forward=tcp:70000:22", "'70000'");
    says("user,mac=52:54:00:12:34", "'52:54:00:12:34'");
    says("user,mac=01:00:5e:00:00:01", "group");
    says("user,subnet=10.0.2.5/24", "10.0.2.0/24");
    says("user,mtu=1000", "1280");
    says("user,mtu=many", "'many'");
    says("user,ipv6=maybe", "ipv6=maybe");
    says("user,hostname", "'hostname'");
    says("user,addr=here", "'here'");
    CHECK(refused({"--net", "user", "--net", "none"}).find("none") != std::string::npos);
    CHECK(refused({"--net", "user", "--check"}).find("--net") != std::string::npos);
    const std::vector<std::string> six{"--net", "user", "--net", "user", "--net", "user",
                                       "--net", "user", "--net", "user", "--net", "user"};
    CHECK(refused(six).find("at most 4") != std::string::npos);
}

TEST_CASE("run: every option arrives in the description") {
    const auto machine = run({"--initrd",    kAnyFile,
                              "--append",    "a b",
                              "--memory",    "3G",
                              "--cpus",      "4",
                              "--cpu",       "x86-64-v2",
                              "--engine",    "translator",
                              "--console",   "file:/tmp/x:y",
                              "--name",      "box",
                              "--no-reboot", "--debug-exit=0x501",
                              "--check",     "--stats",
                              "--module",    std::string{kAnyFile} + " one two",
                              "--module",    kAnyFile});
    REQUIRE(machine);
    CHECK(machine->boot.initrd == kAnyFile);
    CHECK(machine->boot.command_line == "a b");
    CHECK(machine->boot.modules.size() == 2);
    CHECK(machine->memory_bytes == std::uint64_t{3} << 30);
    CHECK(machine->cpus == 4);
    CHECK(machine->cpu_model == "x86-64-v2");
    CHECK(machine->engine == description::Engine::Translator);
    CHECK(machine->console.kind == description::ConsoleKind::File);
    CHECK(machine->console.path == "/tmp/x:y");
    CHECK(machine->name == "box");
    CHECK_FALSE(machine->reboot);
    CHECK(machine->debug_exit_port == 0x501);
    CHECK(machine->checking);
    CHECK(machine->time == description::TimeMode::Virtual); // --check implies it
    CHECK(machine->stats);
}

TEST_CASE("run: --debug-exit needs no port, and takes decimal or hexadecimal") {
    CHECK(run({"--debug-exit"})->debug_exit_port == 0xf4);
    CHECK(run({"--debug-exit=244"})->debug_exit_port == 244);
    for (const char* port : {"0x", "0x10000", "65536", "-1", "f4", "0xf4 ", "4.5"}) {
        CAPTURE(port);
        CHECK(refused({std::string{"--debug-exit="} + port}).starts_with("--debug-exit"));
    }
}

TEST_CASE("run: consoles") {
    using description::ConsoleKind;
    CHECK(run({"--console", "pty"})->console.kind == ConsoleKind::Pty);
    CHECK(run({"--console", "none"})->console.kind == ConsoleKind::None);
    CHECK(run({"--console", "socket:/tmp/s"})->console.path == "/tmp/s");
    for (const char* where : {"file", "file:", "socket:", "pty:x", "stdio:", "tty"}) {
        CAPTURE(where);
        CHECK(refused({std::string{"--console="} + where}).starts_with("--console"));
    }
}

TEST_CASE("run: what is wrong is named by its flag") {
    CHECK(refused({"--memory", "3Q"}).starts_with("--memory"));
    CHECK(refused({"--cpus", "0"}).starts_with("--cpus"));
    CHECK(refused({"--cpu", "i4004"}).starts_with("--cpu"));
    CHECK(refused({"--engine", "quantum"}).starts_with("--engine"));
    CHECK(refused({"--time", "tea"}).starts_with("--time"));
    CHECK(refused({"--initrd", "/nowhere/at/all"}).starts_with("--initrd"));
    CHECK(refused({"--initrd", "/proc"}).find("directory") != std::string::npos);
    CHECK(refused({"--module", "/nowhere arg"}).starts_with("--module"));
    CHECK(refused({"--name", ""}).starts_with("--name"));
    CHECK(refused({"--append", std::string(4096, 'x')}).starts_with("--append"));
}

TEST_CASE("run: disks with limits, secrets and names that are no files") {
    const std::string any = kAnyFile;
    auto machine = run({"--disk", any + ",readonly=on,iops=100,bps_rd=5000,throttling.bps-write=7,"
                                        "iops_max=200,iops_max_length=3,iops_size=4096"});
    REQUIRE(machine);
    const description::Options limits{
        {"iops-total", "100"},     {"bps-read", "5000"},           {"bps-write", "7"},
        {"iops-total-max", "200"}, {"iops-total-max-length", "3"}, {"iops-size", "4096"}};
    CHECK(machine->disks[0].limits == limits);
    machine = run({"--object", "secret,id=s,file=" + any, "--disk",
                   any + ",readonly=on,format=qcow2,encrypt.key-secret=s"});
    REQUIRE(machine);
    CHECK(machine->secrets[0].file == any);
    CHECK(machine->disks[0].options == description::Options{{"encrypt.key-secret", "s"}});
    machine = run({"--disk", "nbd+unix:///disk?socket=/run/s,format=qcow2"});
    REQUIRE(machine);
    CHECK(machine->disks[0].path == "nbd+unix:///disk?socket=/run/s");
    CHECK(machine->disks[0].format == "qcow2");
    machine = run({"--object", "secret,id=s,file=" + any, "--disk",
                   R"(json:{"driver": "qcow2", "encrypt": {"key-secret": "s"}, )"
                   R"("file": {"driver": "file", "filename": ")" +
                       any + R"("}},readonly=on)"});
    REQUIRE(machine);
    CHECK(machine->disks[0].path == any);
    CHECK(machine->disks[0].format == "qcow2");
    CHECK(machine->disks[0].read_only);
    CHECK(machine->disks[0].options == description::Options{{"encrypt.key-secret", "s"}});
}

TEST_CASE("run: wrong limits, secrets and names of disks are one sentence") {
    const std::string disk = std::string{kAnyFile} + ",readonly=on";
    const auto because = [&](const std::string& more, std::string_view text) {
        const auto message = refused({"--disk", disk + more});
        INFO(message);
        CHECK(message.find(text) != std::string::npos);
    };
    because(",iops=many", "many");
    because(",iops=10,iops_rd=5", "excludes limits of reads");
    because(",iops_left=10", "iops-left");
    because(",encrypt.key-secret=s", "wants the secret 's', which is not there");
    because(",colour=red", "has no option 'colour'");
    CHECK(refused({"--disk", "json:{\"driver\": \"qcow2\""}).find("json:") != std::string::npos);
    CHECK(refused({"--disk", R"(json:{"driver": "throttle", "throttle-group": "g", )"
                             R"("file": {"driver": "file", "filename": "x"}})"})
              .find("iops=N") != std::string::npos);
    CHECK(refused({"--object", "iothread,id=x"}).find("'iothread' is unknown") !=
          std::string::npos);
    CHECK(refused({"--object", "secret,id=x,data=y"}).find("show the secret") != std::string::npos);
    CHECK(refused({"--object", "secret,id=x"}).find("wants an id and a file") != std::string::npos);
    CHECK(refused({"--object", "secret,id=x,file=/none"}).find("No such file") !=
          std::string::npos);
    CHECK(refused({"--object", "secret,id=x,format=hex,file=" + std::string{kAnyFile}})
              .find("'hex'") != std::string::npos);
}

TEST_CASE("run: log levels") {
    RunOptions options;
    CHECK(launch_options_of(options).value().log_level == base::LogLevel::Warning);
    options.log = "loud";
    CHECK(launch_options_of(options).error().message().starts_with("--log"));
}

TEST_CASE("escape: Ctrl-A x ends, h helps, twice is one for the guest, others pass") {
    EscapeFilter filter;
    EscapeFilter::Action action{};
    CHECK(typed(filter, "ls\r", action) == "ls\r");
    CHECK(action == EscapeFilter::Action::None);
    CHECK(typed(filter, "ab\x01", action) == "ab"); // held back until the next key
    CHECK(typed(filter, "x", action).empty());
    CHECK(action == EscapeFilter::Action::Quit);
    CHECK(typed(filter, "\x01h", action).empty());
    CHECK(action == EscapeFilter::Action::Help);
    CHECK(typed(filter, "\x01\x01x", action) == "\x01x");
    CHECK(action == EscapeFilter::Action::None);
    CHECK(typed(filter, "\x01z", action) == "\x01z");
}

TEST_CASE("escape: what stands behind an action is left for the next call") {
    EscapeFilter filter;
    std::string out;
    std::size_t used = 0;
    CHECK(filter.feed(std::string_view{"a\x01hb"}, out, used) == EscapeFilter::Action::Help);
    CHECK(used == 3);
    CHECK(out == "a");
}

TEST_CASE("run: a restored machine is what its file says, and the clock's wish needs a file") {
    CLI::App app;
    RunOptions options;
    add_run_options(app, options);
    std::vector<std::string> words{"1G", "--memory", kAnyFile, "--restore"}; // last first
    app.parse(words);
    CHECK(machine_of(options).error().message().find("--memory cannot be given with --restore") !=
          std::string::npos);
    options.restore.clear();
    options.restore_clock = "continue";
    CHECK(launch_options_of(options).error().message().starts_with("--restore-clock"));
    options.restore = kAnyFile;
    CHECK(launch_options_of(options).value().restored_clock_continues);
    options.restore_clock = "never";
    CHECK(launch_options_of(options).error().message().find("'never'") != std::string::npos);
}

TEST_CASE("run: a file that is no saved VM is refused by its name") {
    CLI::App app;
    RunOptions options;
    add_run_options(app, options);
    app.parse(std::vector<std::string>{kAnyFile, "--restore"});
    const auto text = machine_of(options).error().message();
    CHECK(text.find("not a saved VM") != std::string::npos);
    CHECK(text.find(kAnyFile) != std::string::npos);
}

TEST_CASE("escape keys: p pauses and s saves") {
    EscapeFilter filter;
    EscapeFilter::Action action{};
    CHECK(typed(filter, "ab\x01p", action) == "ab");
    CHECK(action == EscapeFilter::Action::Pause);
    CHECK(typed(filter, "\x01S", action).empty());
    CHECK(action == EscapeFilter::Action::Save);
}
