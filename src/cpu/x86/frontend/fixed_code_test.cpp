// SPDX-License-Identifier: Apache-2.0
/// Code that knows its address: what it accesses relative to rip, at each address where it
/// runs.
#include <array>
#include <cstring>
#include <vector>

#include <doctest/doctest.h>

#include "cpu/x86/frontend/test_machine.hpp"

using namespace doppel;
using namespace doppel::cpu::x86;
using namespace doppel::cpu::x86::frontend;

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::uint64_t kAway = 0x10000;
constexpr std::uint64_t kHaltAt = kCodeAt + 0x8000;

class Counter final : public bus::IoHandler {
public:
    std::uint64_t io_read(bus::IoAccess access) override {
        return 0x0102'0304'0506'0708 + ++reads + access.offset;
    }
    void io_write(bus::IoAccess access, std::uint64_t value) override {
        written = value + access.offset;
    }
    unsigned reads = 0;
    std::uint64_t written = 0;
};

/// An instruction with an operand relative to rip, which ends with the displacement and `rest`
/// bytes more.
void add(Bytes& code, std::uint64_t code_at, Bytes bytes, std::uint64_t operand,
         std::size_t rest = 0) {
    const std::uint64_t next = code_at + code.size() + bytes.size();
    const auto distance = static_cast<std::uint32_t>(operand - next);
    std::memcpy(bytes.data() + bytes.size() - 4 - rest, &distance, 4);
    code.insert(code.end(), bytes.begin(), bytes.end());
}

/// Code of the kernel, or of a user whose SYSCALL leads to a HLT.
class Kernel {
public:
    explicit Kernel(TestMachine::Kind kind, unsigned level = 0) : machine{kind}, cpl{level} {
        machine.write(kHaltAt, std::array<std::uint8_t, 1>{0xf4});
    }

    void map(std::uint64_t linear, std::uint64_t gpa_and_bits) {
        (void)machine.memory().store(memory::Gpa{kTablesAt + 0x3000 + (linear >> 12) * 8},
                                     gpa_and_bits);
    }
    CpuState& run(std::uint64_t at) {
        machine.enter_long_mode(cpl);
        CpuState& state = machine.state();
        state.star = std::uint64_t{0x8} << 32;
        state.lstar = kHaltAt;
        state.rip = at;
        state.gpr[Rsp] = kDataAt + 0x3000;
        state.activity = Activity::Running;
        machine.vcpu().state_changed();
        REQUIRE(std::holds_alternative<cpu::HaltExit>(machine.vcpu().run()));
        return state;
    }
    TestMachine machine;
    const unsigned cpl;
};

void check_two_places(TestMachine::Kind kind, unsigned cpl) {
    Kernel kernel{kind, cpl};
    Bytes code;
    add(code, kCodeAt, {0x48, 0x8b, 0x05, 0, 0, 0, 0}, kDataAt + 8);       // mov rax, [..]
    add(code, kCodeAt, {0x4c, 0x03, 0x2d, 0, 0, 0, 0}, kDataAt + 16);      // add r13, [..]
    add(code, kCodeAt, {0x48, 0x83, 0x05, 0, 0, 0, 0, 3}, kDataAt + 8, 1); // add [..], 3
    add(code, kCodeAt, {0x48, 0x8b, 0x0d, 0, 0, 0, 0}, kDataAt + 0xffc);   // mov rcx, two pages
    add(code, kCodeAt, {0x48, 0x8d, 0x1d, 0, 0, 0, 0}, kDataAt);           // lea rbx
    add(code, kCodeAt, {0x4c, 0x8d, 0x35, 0, 0, 0, 0}, kDataAt);           // lea r14
    add(code, kCodeAt, {0x8d, 0x15, 0, 0, 0, 0}, kDataAt);                 // lea edx
    add(code, kCodeAt, {0xf0, 0x48, 0x0f, 0xc1, 0x35, 0, 0, 0, 0}, kDataAt + 32); // lock xadd rsi
    add(code, kCodeAt, {0x4c, 0x8b, 0x0d, 0, 0, 0, 0}, kDataAt + 0xff8);  // a group in two pages:
    add(code, kCodeAt, {0x4c, 0x8b, 0x15, 0, 0, 0, 0}, kDataAt + 0x1010); // mov r9, r10
    add(code, kCodeAt, {0xe8, 0, 0, 0, 0}, kCodeAt + 0x1000);             // call
    kernel.machine.write(kCodeAt, code);
    const Bytes end = cpl == 0 ? Bytes{0x5f, 0xf4} : Bytes{0x5f, 0x49, 0x89, 0xc8, 0x0f, 0x05};
    kernel.machine.write(kCodeAt + 0x1000, end); // pop rdi; hlt, or: mov r8, rcx; syscall
    for (std::uint64_t i = 0; i < 2; ++i) {      // the same code, other data
        kernel.map(kCodeAt + kAway + 0x1000 * i, (kCodeAt + 0x1000 * i) | 7);
        kernel.map(kDataAt + kAway + 0x1000 * i, (kDataAt + 0x5000 + 0x1000 * i) | 7);
    }
    for (std::uint64_t i = 0; i < 0xe00; ++i)
        (void)kernel.machine.memory().store(memory::Gpa{kDataAt + i * 8}, i * 0x0101'0000'0001);
    for (std::uint64_t round = 0; round < 3; ++round) {
        for (const std::uint64_t away : {std::uint64_t{0}, kAway}) {
            const CpuState& state = kernel.run(kCodeAt + away);
            const std::uint64_t first = away == 0 ? 0 : 0x5000 / 8;
            CHECK(state.gpr[Rax] == (first + 1) * 0x0101'0000'0001 + 3 * round);
            CHECK(state.gpr[R13] == (first + 2) * 0x0101'0000'0001);
            CHECK(state.gpr[Rbx] == kDataAt + away);
            CHECK(state.gpr[R14] == kDataAt + away);
            CHECK(state.gpr[Rdx] == kDataAt + away);
            CHECK(state.gpr[Rsi] == (first + 4) * 0x0101'0000'0001);
            CHECK(state.gpr[R9] == (first + 0x1ff) * 0x0101'0000'0001);
            CHECK(state.gpr[R10] == (first + 0x202) * 0x0101'0000'0001);
            CHECK(state.gpr[Rdi] == kCodeAt + away + code.size());
            CHECK(state.gpr[cpl == 0 ? Rcx : R8] == (((first + 0x1ff) * 0x0101'0000'0001) >> 32 |
                                                     ((first + 0x200) * 0x0101'0000'0001) << 32));
        }
    }
}

void check_device(TestMachine::Kind kind) {
    Kernel kernel{kind};
    Counter device;
    kernel.machine.plug(device);
    Bytes code;
    add(code, kCodeAt, {0x48, 0x8b, 0x05, 0, 0, 0, 0}, kDeviceAt); // mov rax, [..]
    add(code, kCodeAt, {0x4c, 0x8b, 0x25, 0, 0, 0, 0}, kDeviceAt); // mov r12, [..]
    add(code, kCodeAt, {0x0f, 0xb6, 0x0d, 0, 0, 0, 0}, kDeviceAt); // movzx ecx, byte [..]
    add(code, kCodeAt, {0x89, 0x05, 0, 0, 0, 0}, kDeviceAt);       // mov [..], eax
    code.push_back(0xf4);
    kernel.machine.write(kCodeAt, code);
    for (std::uint64_t round = 0; round < 3; ++round) {
        const CpuState& state = kernel.run(kCodeAt);
        CHECK(state.gpr[Rax] == 0x0102'0304'0506'0709 + 3 * round);
        CHECK(state.gpr[R12] == 0x0102'0304'0506'070a + 3 * round);
        CHECK(state.gpr[Rcx] == 0x0b + 3 * round);
        CHECK(device.written == 0x0506'0709 + 3 * round);
        CHECK(device.reads == 3 * (round + 1));
    }
}

} // namespace

TEST_CASE("code at two addresses finds the data of each") {
    for (const unsigned cpl : {0u, 3u}) {
        check_two_places(TestMachine::Kind::Interpreter, cpl);
        check_two_places(TestMachine::Kind::Translator, cpl);
    }
}

TEST_CASE("kernel code finds a device relative to its own address") {
    check_device(TestMachine::Kind::Interpreter);
    check_device(TestMachine::Kind::Translator);
}
