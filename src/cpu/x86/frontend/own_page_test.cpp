// SPDX-License-Identifier: Apache-2.0
/// Code that changes what it runs next, while others make its page cease to be a code page.
#include <array>

#include <doctest/doctest.h>

#include "cpu/x86/frontend/test_machine.hpp"

using namespace doppel;
using namespace doppel::cpu::x86;
using namespace doppel::cpu::x86::frontend;

namespace {

/// Read by the guest, it writes to the guest's code, as a disk might, the byte that is there
/// already: all blocks of the page are dropped while one of them runs.
class Disk final : public bus::IoHandler {
public:
    explicit Disk(memory::GuestMemory& memory) : memory_{memory} {}
    std::uint64_t io_read(bus::IoAccess) override {
        ++reads;
        const std::array same{std::byte{0x8a}};
        (void)memory_.write({kCodeAt}, same);
        return 0;
    }
    void io_write(bus::IoAccess, std::uint64_t) override {}

    unsigned reads = 0;

private:
    memory::GuestMemory& memory_;
};

} // namespace

TEST_CASE("a block that was dropped while it runs sees its own stores to what follows") {
    // mov al, [rbx]; mov [rip + 1], edi; mov eax, 0; hlt
    constexpr std::array<std::uint8_t, 14> kCode{0x8a, 0x03, 0x89, 0x3d, 0x01, 0x00, 0x00,
                                                 0x00, 0xb8, 0x00, 0x00, 0x00, 0x00, 0xf4};
    for (const auto kind : {TestMachine::Kind::Interpreter, TestMachine::Kind::Translator}) {
        TestMachine machine{kind};
        Disk disk{machine.memory()};
        machine.plug(disk);
        machine.enter_long_mode();
        for (std::uint64_t round = 1; round < 50; ++round) {
            machine.write(kCodeAt, kCode);
            CpuState& state = machine.state();
            state.gpr[Rbx] = kDeviceAt;
            state.gpr[Rdi] = round * 0x01020304;
            state.rip = kCodeAt;
            state.activity = Activity::Running;
            REQUIRE(std::holds_alternative<cpu::HaltExit>(machine.vcpu().run()));
            REQUIRE(state.gpr[Rax] == (round * 0x01020304 & 0xffff'ffff));
            REQUIRE(disk.reads == round);
        }
    }
}
