// SPDX-License-Identifier: Apache-2.0
#include "api/machine_json.hpp"

#include <doctest/doctest.h>

#include <array>

using namespace doppel;
using description::Machine;

namespace {

/// No member has its default.
Machine unusual() {
    Machine m;
    m.name = "näme \"quoted\"\n";
    m.memory_bytes = std::uint64_t{3} << 30;
    m.cpus = 7;
    m.cpu_model = "x86-64-v2";
    m.engine = description::Engine::Translator;
    m.time = description::TimeMode::Virtual;
    m.translation.tuning.groups = false;
    m.translation.tuning.busy_calls = 7;
    m.translation.chaos = UINT64_MAX;
    m.translation.cache_mib = 64;
    m.translation.jit_dump = "/tmp/dumps";
    m.boot = {.kernel = "/k/vmlinuz",
              .initrd = "/k/initrd",
              .command_line = "console=ttyS0 a=\"b c\"",
              .modules = {"/m/one arg", "/m/two"}};
    m.console = {.kind = description::ConsoleKind::Socket, .path = "/run/console"};
    m.debug_exit_port = 0xf4;
    m.reboot = false;
    m.checking = true;
    m.stats = true;
    return m;
}

/// What is said about a description that is wrong in one place.
base::Error error_of(std::string_view text) {
    const auto machine = api::machine_from_json(text);
    REQUIRE_FALSE(machine);
    return machine.error();
}

struct Wrong {
    const char* json;
    const char* says; // words of the message
};

} // namespace

TEST_CASE("networks survive the way through JSON") {
    Machine machine;
    machine.boot.kernel = "k";
    machine.nets = {{.mac = "02:00:00:00:00:01",
                     .address = "00:05.0",
                     .mtu = 9000,
                     .subnet = "172.16.0.0/16",
                     .ipv6 = false,
                     .restricted = true,
                     .hostname = "box",
                     .forwards = {"tcp:127.0.0.1:2222:22", "udp:0.0.0.0:53:53"}},
                    {.mac = "02:00:00:00:00:02", .address = "00:06.0"}};
    const auto text = api::machine_to_json(machine);
    const auto back = api::machine_from_json(text);
    REQUIRE(back);
    CHECK(api::machine_to_json(*back) == text);
    REQUIRE(back->nets.size() == 2);
    CHECK(back->nets[0].forwards == machine.nets[0].forwards);
    CHECK(back->nets[0].restricted);
    CHECK_FALSE(back->nets[0].ipv6);
}

TEST_CASE("a description survives the way through JSON, whatever its members hold") {
    for (const auto& machine : {unusual(), [] {
                                    Machine plain;
                                    plain.boot.kernel = "k";
                                    return plain;
                                }()}) {
        const auto text = api::machine_to_json(machine);
        const auto back = api::machine_from_json(text);
        REQUIRE(back);
        CHECK(api::machine_to_json(*back) == text);
        CHECK(back->name == machine.name);
        CHECK(back->memory_bytes == machine.memory_bytes);
        CHECK(back->engine == machine.engine);
        CHECK(back->time == machine.time);
        CHECK(back->boot.modules == machine.boot.modules);
        CHECK(back->console.kind == machine.console.kind);
        CHECK(back->console.path == machine.console.path);
        CHECK(back->debug_exit_port == machine.debug_exit_port);
        CHECK(back->reboot == machine.reboot);
        CHECK(back->checking == machine.checking);
        CHECK(back->translation.tuning.groups == machine.translation.tuning.groups);
        CHECK(back->translation.tuning.busy_calls == machine.translation.tuning.busy_calls);
        CHECK(back->translation.chaos == machine.translation.chaos);
        CHECK(back->translation.cache_mib == machine.translation.cache_mib);
        CHECK(back->translation.tuning.flags == machine.translation.tuning.flags);
        CHECK(back->translation.jit_dump == machine.translation.jit_dump);
        CHECK(back->stats == machine.stats);
    }
}

TEST_CASE("members that are absent keep their defaults") {
    const auto machine = api::machine_from_json(R"({"boot": {"kernel": "k"}})");
    REQUIRE(machine);
    CHECK(machine->cpus == 1);
    CHECK(machine->memory_bytes == 512u << 20);
    CHECK(machine->boot.initrd.empty());
    CHECK_FALSE(machine->debug_exit_port);
    const auto null =
        api::machine_from_json(R"({"boot": {"kernel": "k"}, "debug_exit_port": null})");
    REQUIRE(null);
    CHECK_FALSE(null->debug_exit_port);
}

TEST_CASE("every member of a wrong type or range is refused by its path") {
    constexpr std::array kWrong{
        Wrong{"[]", "(the whole)"},
        Wrong{R"({"boot": 1})", "'boot' must be an object"},
        Wrong{R"({"boot": {"kernel": 1}})", "'boot.kernel' must be a string"},
        Wrong{R"({"boot": {"modules": "m"}})", "'boot.modules' must be a list"},
        Wrong{R"({"boot": {"modules": [1]}})", "'boot.modules' must be a string"},
        Wrong{R"({"name": null})", "'name' must be a string"},
        Wrong{R"({"cpus": "two"})", "'cpus' must be a whole number"},
        Wrong{R"({"cpus": -1})", "'cpus' must be a whole number"},
        Wrong{R"({"cpus": 1.5})", "'cpus' must be a whole number"},
        Wrong{R"({"cpus": 4294967296})", "'cpus' must be a whole number"},
        Wrong{R"({"memory_bytes": "512M"})", "'memory_bytes' must be a whole number"},
        Wrong{R"({"memory_bytes": 1e30})", "'memory_bytes' must be a whole number"},
        Wrong{R"({"debug_exit_port": 65536})", "'debug_exit_port' must be a whole number"},
        Wrong{R"({"debug_exit_port": "0xf4"})", "'debug_exit_port' must be a whole number"},
        Wrong{R"({"engine": "quantum"})", "'engine' must be auto"},
        Wrong{R"({"engine": 1})", "'engine' must be a string"},
        Wrong{R"({"time": "tea"})", "'time' must be real"},
        Wrong{R"({"console": {"kind": "teletype"}})", "'console.kind' must be stdio"},
        Wrong{R"({"console": {"path": 5}})", "'console.path' must be a string"},
        Wrong{R"({"reboot": 1})", "'reboot' must be true or false"},
        Wrong{R"({"checking": "yes"})", "'checking' must be true or false"},
        Wrong{R"({"stats": null})", "'stats' must be true or false"},
        Wrong{R"({"flavour": "vanilla"})", "'flavour' is unknown"},
        Wrong{R"({"boot": {"kernel": "k"}, "nets": [{"kind": "tap"}]})", "'nets[0].kind' must be"},
        Wrong{R"({"boot": {"kernel": "k"}, "nets": [{"forwards": ["tcp:22"]}]})", "'tcp:22'"},
        Wrong{R"({"boot": {"disk": "d"}})", "'boot.disk' is unknown"},
        Wrong{R"({"console": {"speed": 9600}})", "'console.speed' is unknown"},
    };
    for (const auto& [json, says] : kWrong) {
        CAPTURE(json);
        const auto error = error_of(json);
        CHECK(error.code == base::Errc::InvalidArgument);
        CHECK_MESSAGE(error.message().find(says) != std::string::npos, error.message());
    }
}

TEST_CASE("what is no JSON, or stops in the middle, is refused") {
    const auto whole = api::machine_to_json(unusual());
    for (std::size_t length = 0; length + 2 < whole.size(); length += 7)
        CHECK_FALSE(api::machine_from_json(whole.substr(0, length)));
    CHECK(error_of("kernel=vmlinuz").message().find("not JSON") != std::string::npos);
}

TEST_CASE("values that are well-formed but impossible are refused by validation") {
    for (const char* json :
         {R"({"boot": {"kernel": ""}})", R"({"boot": {"kernel": "k"}, "cpus": 0})",
          R"({"boot": {"kernel": "k"}, "cpus": 17})",
          R"({"boot": {"kernel": "k"}, "memory_bytes": 1048577})",
          R"({"boot": {"kernel": "k"}, "cpu_model": "i4004"})",
          R"({"boot": {"kernel": "k"}, "board": "pc-9.9"})",
          R"({"boot": {"kernel": "k"}, "name": ""})",
          R"({"boot": {"kernel": "k"}, "console": {"kind": "file"}})",
          R"({"boot": {"kernel": "k"}, "checking": true})",
          R"({"boot": {"kernel": "k"}, "time": "virtual", "engine": "kvm"})"}) {
        CAPTURE(json);
        CHECK(error_of(json).code != base::Errc::Internal);
    }
}
