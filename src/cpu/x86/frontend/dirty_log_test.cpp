// SPDX-License-Identifier: Apache-2.0
/// The dirty log (memory/guest_memory) under guests that keep permissions to write.
#include <array>

#include <doctest/doctest.h>

#include "cpu/x86/frontend/test_machine.hpp"

using namespace doppel;
using namespace doppel::cpu::x86;
using namespace doppel::cpu::x86::frontend;

namespace {

constexpr std::uint64_t kPages = 256, kStep = 0x2000;
// 1: mov [rdi], rax; add rdi, kStep; dec ecx; jnz 1b; hlt
constexpr std::array<std::uint8_t, 15> kStores{0x48, 0x89, 0x07, 0x48, 0x81, 0xc7, 0x00, 0x20,
                                               0x00, 0x00, 0xff, 0xc9, 0x75, 0xf2, 0xf4};

/// Stores to kPages pages from `first` on, every second one; what the vCPU has cached stays.
void store(TestMachine& machine, std::uint64_t first) {
    CpuState& state = machine.state();
    state.gpr[Rdi] = first;
    state.gpr[Rcx] = kPages;
    ++state.gpr[Rax];
    state.rip = kCodeAt;
    state.activity = Activity::Running;
    REQUIRE(std::holds_alternative<cpu::HaltExit>(machine.vcpu().run()));
    REQUIRE(machine.memory().load<std::uint64_t>({first}) == state.gpr[Rax]);
}

void check_log(TestMachine& machine, std::uint64_t first) {
    const auto log = machine.memory().harvest_dirty_log();
    machine.vcpu().drop_write_permissions();
    for (std::uint64_t page = 0; page < kRamBytes >> 12; ++page) {
        const auto gpa = page << 12;
        const bool written =
            gpa >= first && gpa < first + kPages * kStep && (gpa - first) % kStep == 0;
        CAPTURE(gpa);
        REQUIRE((log[page / 64] >> page % 64 & 1) == written);
    }
}

void check_exact(TestMachine::Kind kind) {
    TestMachine machine{kind};
    machine.enter_long_mode();
    machine.write(kCodeAt, kStores);
    for (const auto first : {kDataAt, kDataAt + 0x1000}) // page tables have their A and D bits now
        store(machine, first);
    machine.memory().start_dirty_log();
    machine.vcpu().drop_write_permissions();
    for (unsigned round = 0; round < 3; ++round) {
        const auto first = kDataAt + (round & 1) * 0x1000;
        store(machine, first);
        store(machine, first); // what is logged is written to without a look
        check_log(machine, first);
    }
    machine.memory().stop_dirty_log();
}

} // namespace

TEST_CASE("the dirty log has exactly the pages that translated code wrote") {
    check_exact(TestMachine::Kind::Translator);
}

TEST_CASE("the dirty log has exactly the pages that interpreted code wrote") {
    check_exact(TestMachine::Kind::Interpreter);
}
