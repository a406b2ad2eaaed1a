// SPDX-License-Identifier: Apache-2.0
/// Every system call of the engine fails in turn: each failure must come out as an error that says
/// which. No /dev/kvm needed.
#include <doctest/doctest.h>

#include "cpu/kvm/test_kernel.hpp"

using namespace doppel;
using namespace doppel::cpu;
using namespace doppel::cpu::kvm;
using test::Board;
using test::FakeKernel;

namespace {

/// Everything that the engine asks of the kernel between the start and the end of a VM.
base::Result<void> whole_life(FakeKernel& kernel) {
    Board board{2 << 20};
    auto system = DOPPEL_TRY(KvmSystem::open(kernel));
    auto machine = DOPPEL_TRY(KvmMachine::create(std::move(system), *board.memory));
    auto vcpu = DOPPEL_TRY(KvmVcpu::create(*machine, board.wiring(), 1));
    vcpu->set_apic({});
    machine->set_level_route(3, bus::MsiMessage{0xfee0'0000, 0x8051});
    const int eventfd = 0;
    const auto gsi = DOPPEL_TRY(machine->add_irqfd(eventfd, {0xfee0'0000, 0x52}));
    DOPPEL_TRY_VOID(machine->remove_irqfd(gsi, eventfd));
    DOPPEL_TRY_VOID(machine->add_doorbell({.address = 0x1000, .size_bytes = 4}, eventfd));
    DOPPEL_TRY_VOID(machine->remove_doorbell({.address = 0x1000, .size_bytes = 4}, eventfd));
    board.memory->set_write_log(machine.get());
    board.memory->start_dirty_log();
    board.interrupts.external = {0x20};
    kernel.on_run = [&] { vcpu->kick(); };
    const auto exit = vcpu->run();
    vcpu->apic();
    const auto after = vcpu->run(); // what apic() met
    for (const auto* one : {&exit, &after})
        if (const auto* error = std::get_if<ErrorExit>(one))
            return std::unexpected(error->error);
    return {};
}

} // namespace

TEST_CASE("with a kernel that says yes, nothing fails") {
    FakeKernel kernel;
    const auto done = whole_life(kernel);
    CHECK_MESSAGE(done.has_value(), (done ? "" : done.error().message()));
    CHECK(kernel.seen.size() > 25);
}

TEST_CASE("whichever request fails, the error names it and the system's reason") {
    FakeKernel willing;
    REQUIRE(whole_life(willing));
    for (const auto request : willing.seen) {
        if (request == (KVM_CHECK_EXTENSION & 0xffff))
            continue; // one that cannot be asked for is one that is missing
        CAPTURE(request);
        FakeKernel kernel;
        kernel.failing = request;
        const auto done = whole_life(kernel);
        REQUIRE_FALSE(done);
        CHECK(done.error().text.find("KVM_") != std::string::npos);
        CHECK(done.error().os_errno == ENOMEM);
    }
}

TEST_CASE("a KVM without something that the engine is built on is refused, by name") {
    for (const auto& [number, name] :
         {std::pair{KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP"},
          std::pair{KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
          std::pair{KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER"}}) {
        FakeKernel kernel;
        kernel.missing_capability = static_cast<unsigned long>(number);
        const auto system = KvmSystem::open(kernel);
        REQUIRE_FALSE(system);
        CHECK(system.error().code == base::Errc::Unsupported);
        CHECK(system.error().text.find(name) != std::string::npos);
        CHECK(system.error().hint.find("translator") != std::string::npos);
    }
}

TEST_CASE("no /dev/kvm, no permission, another API: one sentence with a way out") {
    FakeKernel kernel;
    kernel.open_error = ENOENT;
    CHECK(KvmSystem::open(kernel).error().code == base::Errc::NotFound);
    kernel.open_error = EACCES;
    const auto refused = KvmSystem::open(kernel);
    CHECK(refused.error().code == base::Errc::PermissionDenied);
    CHECK(refused.error().hint.find("group") != std::string::npos);
    kernel.open_error = 0;
    kernel.api_version = 11;
    CHECK(KvmSystem::open(kernel).error().text.find("version 11") != std::string::npos);
}

TEST_CASE("a vCPU's page that cannot be mapped is an error") {
    FakeKernel kernel;
    kernel.failing = ~0ul;
    const auto done = whole_life(kernel);
    REQUIRE_FALSE(done);
    CHECK(done.error().text.find("map a vCPU's page") != std::string::npos);
}

TEST_CASE("a CPU model that this KVM cannot have is told bit by bit") {
    FakeKernel kernel; // offers no feature at all
    const auto system = KvmSystem::open(kernel);
    REQUIRE(system);
    const auto missing = system->missing_features(*description::find_cpu_model("x86-64-v3"));
    CHECK(missing.find("CPUID.07H:EBX bits") != std::string::npos);
    CHECK(missing.find(", 5,") != std::string::npos); // AVX2
}

TEST_CASE("what the engine gives by itself is not asked of the host") {
    FakeKernel kernel; // offers no feature at all, so an AMD CPU's less too
    const auto system = KvmSystem::open(kernel);
    REQUIRE(system);
    CHECK_FALSE(system->has_speculation_control());
    const auto missing = system->missing_features(*description::find_cpu_model("x86-64-v1"));
    CHECK(missing.find("CPUID.07H:EBX bit 1,") != std::string::npos);  // TSC_ADJUST, not 13
    CHECK(missing.find("CPUID.07H:EDX bit 29,") != std::string::npos); // not 26 and 27
}
