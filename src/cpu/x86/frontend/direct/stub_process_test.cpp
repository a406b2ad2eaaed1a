// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/stub_process.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <initializer_list>
#include <thread>

#include <doctest/doctest.h>

namespace {

using namespace doppel::cpu::x86;
using frontend::StubProcess;
using Rights = StubProcess::Rights;
using Stop = StubProcess::Stop;

/// One page of code at 0x401000, one of data at 0x7fff00000000.
struct Rig {
    static constexpr std::uint64_t kCode = 0x401000, kData = 0x7fff'0000'0000;

    Rig() {
        REQUIRE(::ftruncate(ram.get(), 0x4000) == 0);
        memory = static_cast<std::uint8_t*>(
            ::mmap(nullptr, 0x4000, PROT_READ | PROT_WRITE, MAP_SHARED, ram.get(), 0));
        auto made = StubProcess::create(ram.get());
        REQUIRE_MESSAGE(made.has_value(), (made ? std::string{} : made.error().message()));
        stub = std::move(*made);
        stub->map(kCode, 0x1000, 0x1000, Rights::ReadExecute);
        stub->map(kData, 0x1000, 0x2000, Rights::ReadWrite);
        registers.rip = kCode;
        registers.gpr[Rsp] = kData + 0x800;
        registers.rflags = FLAG_IF | 2;
        registers.cs = StubProcess::kCs;
        registers.ss = StubProcess::kSs;
        const std::uint32_t mxcsr = 0x1f80;
        std::memcpy(vectors.bytes.data() + 24, &mxcsr, sizeof mxcsr);
    }
    ~Rig() { ::munmap(memory, 0x4000); }
    Rig(const Rig&) = delete;
    Rig& operator=(const Rig&) = delete;

    StubProcess::Result run(std::initializer_list<std::uint8_t> code) {
        std::copy(code.begin(), code.end(), memory + 0x1000);
        REQUIRE(stub->flush());
        return stub->run(registers, vectors, attention, 0);
    }

    doppel::base::UniqueFd ram{::memfd_create("ram", MFD_CLOEXEC)};
    std::uint8_t* memory = nullptr;
    std::unique_ptr<StubProcess> stub;
    StubProcess::Registers registers;
    XsaveArea vectors{};
    std::atomic<std::uint64_t> attention{0};
};

} // namespace

TEST_CASE("registers, flags and memory go in and come out") {
    Rig rig;
    rig.registers.gpr[Rax] = 5;
    rig.registers.gpr[Rdx] = 0x1'0000'0000;
    rig.registers.gpr[R15] = 7;
    // lea rax,[rax+rdx]; add r15,-7; push rax; int3
    CHECK(rig.run({0x48, 0x8d, 0x04, 0x10, 0x49, 0x83, 0xc7, 0xf9, 0x50, 0xcc}).stop ==
          Stop::Trapped);
    CHECK(rig.registers.gpr[Rax] == 0x1'0000'0005);
    CHECK(rig.registers.gpr[R15] == 0);
    CHECK((rig.registers.rflags & (FLAG_ZF | FLAG_CF)) == (FLAG_ZF | FLAG_CF));
    CHECK(rig.registers.rip == Rig::kCode + 9);
    std::uint64_t pushed = 0;
    std::memcpy(&pushed, rig.memory + 0x27f8, 8);
    CHECK(pushed == 0x1'0000'0005);
}

TEST_CASE("vectors go in and come out") {
    Rig rig;
    rig.vectors.bytes[512] = std::byte{6}; // SSE and AVX
    rig.vectors.bytes[160] = std::byte{3}; // xmm0
    rig.vectors.bytes[576] = std::byte{9}; // ymm0, high half
    // vpaddb ymm1,ymm0,ymm0; int3
    CHECK(rig.run({0xc5, 0xfd, 0xfc, 0xc8, 0xcc}).stop == Stop::Trapped);
    CHECK(rig.vectors.bytes[176] == std::byte{6});
    CHECK(rig.vectors.bytes[592] == std::byte{18});
}

TEST_CASE("a call of the kernel is not executed, whichever way it is made") {
    Rig rig;
    rig.registers.gpr[Rax] = 60; // exit
    CHECK(rig.run({0x0f, 0x05}).stop == Stop::Syscall);
    CHECK(rig.registers.gpr[Rax] == 60);
    CHECK(rig.registers.rip == Rig::kCode + 2);
    rig.registers.rip = Rig::kCode;
    rig.registers.gpr[Rax] = 1; // likewise
    const auto stop = rig.run({0xcd, 0x80}).stop;
    CHECK((stop == Stop::Syscall || stop == Stop::Refused)); // the kernel may have none
    CHECK(rig.registers.gpr[Rax] == 1);
    // What the process itself is made to call: int3 would come behind.
    rig.registers.rip = rig.stub->own();
    rig.registers.gpr[Rax] = 9;
    CHECK(rig.run({0xcc}).stop == Stop::Syscall);
}

TEST_CASE("the counter can be refused, and is not at the beginning") {
    Rig rig;
    const std::initializer_list<std::uint8_t> rdtsc{0x0f, 0x31, 0xcc},
        rdtscp{0x0f, 0x01, 0xf9, 0xcc};
    for (const bool refused : {false, true, true, false, true}) {
        if (refused != rig.stub->refuses_tsc())
            REQUIRE(rig.stub->refuse_tsc(refused));
        for (const auto& code : {rdtsc, rdtscp}) {
            rig.registers.rip = Rig::kCode;
            CHECK(rig.run(code).stop == (refused ? Stop::Refused : Stop::Trapped));
        }
    }
}

TEST_CASE("what cannot be executed is told") {
    Rig rig;
    // mov [0x500000],eax; then a page that may only be read, then code that may not be executed
    auto result = rig.run({0x89, 0x04, 0x25, 0x00, 0x00, 0x50, 0x00});
    CHECK(result.stop == Stop::Memory);
    CHECK(result.address == 0x500000);
    CHECK(rig.registers.rip == Rig::kCode);
    rig.stub->map(0x500000, 0x1000, 0x3000, Rights::Read);
    result = rig.run({0x89, 0x04, 0x25, 0x00, 0x00, 0x50, 0x00});
    CHECK(result.stop == Stop::Memory);
    rig.registers.rip = 0x500000;
    result = rig.run({});
    CHECK(result.stop == Stop::Memory);
    CHECK(result.address == 0x500000);
    rig.registers.rip = Rig::kCode;
    CHECK(rig.run({0xf4}).stop == Stop::Refused);       // hlt
    CHECK(rig.run({0x0f, 0x0b}).stop == Stop::Refused); // ud2
    rig.registers.gpr[Rcx] = 0;
    CHECK(rig.run({0xf7, 0xf1}).stop == Stop::Refused); // div ecx
    CHECK(rig.registers.rip == Rig::kCode);
    CHECK(rig.run({0xf1, 0x90}).stop == Stop::Trapped);
    CHECK(rig.registers.rip == Rig::kCode);
    // pushf; or dword [rsp],0x100; popf; nop
    rig.registers.rip = Rig::kCode;
    CHECK(rig.run({0x9c, 0x81, 0x0c, 0x24, 0x00, 0x01, 0x00, 0x00, 0x9d, 0x90, 0x90}).stop ==
          Stop::Stepped);
    CHECK(rig.registers.rip == Rig::kCode + 10);
    CHECK((rig.registers.rflags & FLAG_TF) != 0);
}

TEST_CASE("the vsyscall page is not the host's") {
    Rig rig;
    // call rax
    rig.registers.gpr[Rax] = 0xffff'ffff'ff60'0000;
    const auto result = rig.run({0xff, 0xd0, 0xcc});
    CHECK((result.stop == Stop::Vsyscall || result.stop == Stop::Memory));
    CHECK(rig.registers.rip == 0xffff'ffff'ff60'0000);
    CHECK(rig.registers.gpr[Rsp] == Rig::kData + 0x7f8);
}

TEST_CASE("nothing of the host's is there") {
    Rig rig;
    for (const std::uint64_t address :
         {std::uint64_t{0x7fff'f7ff'e000}, std::uint64_t{0x5555'5555'4000}}) {
        rig.registers.rip = Rig::kCode;
        rig.registers.gpr[Rbx] = address;
        CHECK(rig.run({0x48, 0x8b, 0x03}).stop == Stop::Memory); // mov rax,[rbx]
    }
}

TEST_CASE("mappings are replaced and dropped") {
    Rig rig;
    rig.memory[0x2000] = 1;
    rig.memory[0x3000] = 2;
    rig.registers.gpr[Rbx] = Rig::kData;
    const auto load = [&] {
        rig.registers.rip = Rig::kCode;
        return rig.run({0x8a, 0x03, 0xcc}); // mov al,[rbx]; int3
    };
    CHECK(load().stop == Stop::Trapped);
    CHECK((rig.registers.gpr[Rax] & 0xff) == 1);
    rig.stub->map(Rig::kData, 0x1000, 0x3000, Rights::Read);
    CHECK(load().stop == Stop::Trapped);
    CHECK((rig.registers.gpr[Rax] & 0xff) == 2);
    rig.stub->unmap(Rig::kData, 0x1000);
    CHECK(load().stop == Stop::Memory);
    rig.stub->unmap_all();
    CHECK(load().address == Rig::kCode);
}

TEST_CASE("a loop is left when somebody asks for it") {
    Rig rig;
    rig.attention = 1;
    CHECK(rig.run({0xeb, 0xfe}).stop == Stop::NotRun);
    rig.attention = 0;
    std::jthread other{[&] {
        std::this_thread::sleep_for(std::chrono::milliseconds{20});
        rig.attention = 1;
        rig.stub->poke();
    }};
    CHECK(rig.run({0xeb, 0xfe}).stop == Stop::Poked);
    CHECK(rig.registers.rip == Rig::kCode);
}

TEST_CASE("protection keys that the guest has changed do not stay so") {
    Rig rig;
    for (const std::uint64_t keys : {0xffff'ffffu, 0xaaaa'aaaau}) {
        rig.registers.rip = Rig::kCode;
        rig.registers.gpr[Rax] = keys;
        rig.registers.gpr[Rcx] = rig.registers.gpr[Rdx] = 0;
        rig.run({0x0f, 0x01, 0xef, 0x48, 0x89, 0x04, 0x24, 0xcc}); // wrpkru; mov [rsp],rax; int3
        rig.registers.rip = Rig::kCode;
        CHECK(rig.run({0x48, 0x89, 0x04, 0x24, 0xcc}).stop == Stop::Trapped);
    }
}

TEST_CASE("what cannot be loaded is an exception, at the place where it was to run") {
    Rig rig;
    rig.registers.rip = 0x8000'0000'0000;
    CHECK(rig.run({0xcc}).stop == Stop::Refused);
    CHECK(rig.registers.rip == 0x8000'0000'0000);
    rig.registers.rip = Rig::kCode;
    rig.vectors.bytes[27] = std::byte{0xff}; // MXCSR
    CHECK(rig.run({0xcc}).stop == Stop::Refused);
    rig.vectors.bytes[27] = std::byte{0};
    CHECK(rig.run({0xcc}).stop == Stop::Trapped);
}

TEST_CASE("instructions are refused where there are breakpoints") {
    Rig rig;
    REQUIRE(rig.stub->set_breakpoints({Rig::kCode + 1, 0, 0, 0}));
    CHECK(rig.run({0x90, 0x90, 0xcc}).stop == Stop::Refused);
    CHECK(rig.registers.rip == Rig::kCode + 1);
    REQUIRE(rig.stub->set_breakpoints({Rig::kCode, 0, Rig::kCode + 2, 0}));
    CHECK(rig.run({0x90, 0x90, 0x90, 0xcc}).stop == Stop::Refused);
    CHECK(rig.registers.rip == Rig::kCode + 2);
    REQUIRE(rig.stub->set_breakpoints({}));
    CHECK(rig.run({0x90, 0x90, 0x90, 0xcc}).stop == Stop::Trapped);
}

TEST_CASE("CPUID can be refused where the host's CPU can") {
    Rig rig;
    if (!rig.stub->can_refuse_cpuid())
        return;
    for (const bool yes : {true, false}) {
        CHECK(rig.stub->refuse_cpuid(yes));
        CHECK(rig.stub->refuses_cpuid() == yes);
        CHECK(rig.run({0x0f, 0xa2, 0xcc}).stop == (yes ? Stop::Refused : Stop::Trapped));
        CHECK(rig.registers.rip == Rig::kCode + (yes ? 0 : 2));
    }
}

TEST_CASE("code that is hidden is executed and not read") {
    Rig rig;
    if (rig.stub->copies() == 0)
        return;
    rig.stub->copy(3)[0] = std::byte{0xf4};
    rig.stub->map(Rig::kCode, 0x1000, 0x3000, Rights::Execute);
    CHECK(rig.run({}).stop == Stop::Refused);
    rig.stub->copy(3)[0] = std::byte{0x8a}; // mov al,[rbx]
    rig.stub->copy(3)[1] = std::byte{0x03};
    rig.registers.gpr[Rbx] = Rig::kCode;
    const auto result = rig.run({});
    CHECK(result.stop == Stop::Memory);
    CHECK(result.address == Rig::kCode);
}

TEST_CASE("a process that is killed gives back what it had") {
    Rig rig;
    std::jthread other{[pid = rig.stub->pid()] {
        std::this_thread::sleep_for(std::chrono::milliseconds{30});
        ::kill(pid, SIGKILL);
    }};
    // inc rax; jmp
    const auto stop = rig.run({0x48, 0xff, 0xc0, 0xeb, 0xfb}).stop;
    CHECK((stop == Stop::Poked || stop == Stop::Lost)); // the host may not tell
    if (stop == Stop::Poked)
        CHECK(rig.registers.gpr[Rax] > 1000);
    CHECK(!rig.stub->alive());
    const std::uint64_t rip = rig.registers.rip;
    CHECK(rig.stub->run(rig.registers, rig.vectors, rig.attention, 0).stop == Stop::Dead);
    CHECK(rig.registers.rip == rip);
}
