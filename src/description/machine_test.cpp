// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "description/machine.hpp"

using namespace doppel::description;

namespace {
Machine good() {
    Machine machine;
    machine.boot.kernel = "vmlinuz";
    return machine;
}
std::string field_of(const Machine& machine) {
    const auto result = validate(machine);
    return result ? "" : result.error().field;
}
} // namespace

TEST_CASE("sizes are read as people write them") {
    CHECK(parse_size("512M").value() == 512ull << 20);
    CHECK(parse_size("2g").value() == 2ull << 30);
    CHECK(parse_size("64KiB").value() == 64ull << 10);
    CHECK(parse_size("1048576").value() == 1048576);
    for (const char* bad : {"", "M", "3Q", "-1M", "1.5G", "1 G", "99999999999T", "5MM"})
        CHECK_MESSAGE(!parse_size(bad), bad);
}

TEST_CASE("formatted sizes read back") {
    for (const std::uint64_t bytes : {0ull, 1ull, 1024ull, 512ull << 20, (1ull << 40) + 1024})
        CHECK(parse_size(format_size(bytes)).value() == bytes);
    CHECK(format_size(512ull << 20) == "512M");
}

TEST_CASE("validation names the field that is wrong") {
    CHECK(field_of(good()) == "");
    auto machine = good();
    machine.cpus = 0;
    CHECK(field_of(machine) == "cpus");
    machine.cpus = 1;
    machine.translation.cache_mib = 1;
    CHECK(field_of(machine) == "translation.cache_mib");
    machine.translation.cache_mib = 2000;
    CHECK(field_of(machine) == "translation.cache_mib");
    machine = good();
    machine.memory_bytes = 1000;
    CHECK(field_of(machine) == "memory_bytes");
    machine = good();
    machine.cpu_model = "pentium-9";
    CHECK(field_of(machine) == "cpu_model");
    machine = good();
    machine.boot.command_line.assign(5000, 'x');
    CHECK(field_of(machine) == "boot.command_line");
    machine = good();
    machine.console = {ConsoleKind::Socket, ""};
    CHECK(field_of(machine) == "console.path");
}

TEST_CASE("machine: the checking mode wants the translator and virtual time") {
    auto machine = good();
    machine.checking = true;
    CHECK(field_of(machine) == "time");
    machine.time = TimeMode::Virtual;
    CHECK(field_of(machine) == "");
    machine.engine = Engine::Interpreter;
    CHECK(field_of(machine) == "engine");
    machine.engine = Engine::Kvm;
    CHECK(field_of(machine) == "engine");
}

TEST_CASE("machine: the engine kvm has no virtual time") {
    auto machine = good();
    machine.engine = Engine::Kvm;
    CHECK(field_of(machine) == "");
    machine.time = TimeMode::Virtual;
    CHECK(field_of(machine) == "time");
}

TEST_CASE("machine: names of the time modes go both ways") {
    for (const auto mode : {TimeMode::Real, TimeMode::Virtual})
        CHECK(parse_time_mode(time_mode_name(mode)) == mode);
    CHECK(!parse_time_mode("imaginary"));
}
