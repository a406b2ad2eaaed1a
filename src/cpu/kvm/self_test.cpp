// SPDX-License-Identifier: Apache-2.0
#include "cpu/kvm/self_test.hpp"

#include <algorithm>
#include <array>
#include <ctime>

#include <fmt/core.h>

#include "cpu/kvm/bare_guest.hpp"
#include "cpu/kvm/bare_machine.hpp"
#include "cpu/kvm/self_test_guest.hpp"

namespace doppel::cpu::kvm {

using base::Result;
using namespace self_test_guest;

namespace {

struct Part {
    const char* name;
    const std::byte* start;
};
const Part kParts[] = {
    {"int3", doppel_self_test_int3},       {"SSE", doppel_self_test_sse},
    {"XSAVE", doppel_self_test_xsave},     {"SYSRET", doppel_self_test_sysret},
    {"CMPXCHG16B", doppel_self_test_cx16},
};

std::uint64_t offset_of(const std::byte* label) {
    return static_cast<std::uint64_t>(label - doppel_self_test_begin);
}

/// Takes the guest's word and stops it.
class ResultPort final : public bus::IoHandler {
public:
    explicit ResultPort(Vcpu& vcpu) : vcpu_{vcpu} {}
    std::uint64_t io_read(bus::IoAccess) override { return 0; }
    void io_write(bus::IoAccess, std::uint64_t value) override {
        worked = value == 0;
        vcpu_.kick();
    }
    bool worked = false;

private:
    Vcpu& vcpu_;
};

double thread_seconds() {
    timespec time{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

/// False also when KVM itself gives up. `seconds` is the CPU time of running it.
Result<bool> works(Syscalls& syscalls, const std::byte* start, double& seconds) {
    auto bare = DOPPEL_TRY(BareMachine::create(syscalls, 256 << 10));
    auto& vcpu = *bare->vcpus.front();
    ResultPort port{vcpu};
    DOPPEL_TRY_VOID(bare->pio.map({kResultPort, 1, "self-test", {1, 1, true}, &port}));
    const std::array handlers{BareGuest::Handler{3, offset_of(doppel_self_test_on_int3)}};
    BareGuest::place(*bare->memory, {doppel_self_test_begin, doppel_self_test_end},
                     offset_of(doppel_self_test_fail), handlers);
    BareGuest::enter(vcpu.state(), offset_of(start), BareGuest::Ring::Kernel);
    vcpu.state().lstar = BareGuest::kCode + offset_of(doppel_self_test_on_syscall);
    vcpu.state_changed();
    const auto before = thread_seconds();
    const auto exit = vcpu.run();
    seconds = thread_seconds() - before;
    return std::holds_alternative<KickExit>(exit) && port.worked;
}

} // namespace

Result<SelfTest> self_test(Syscalls& syscalls) {
    SelfTest result;
    double seconds = 0.0;
    for (const auto& part : kParts)
        if (!DOPPEL_TRY(works(syscalls, part.start, seconds)))
            result.failed.emplace_back(part.name);
    if (!DOPPEL_TRY(works(syscalls, doppel_self_test_speed, seconds)))
        result.failed.emplace_back("a loop");
    else
        result.million_instructions_s =
            static_cast<double>(kSpeedInstructions) * 1e-6 / std::max(seconds, 1e-9);
    return result;
}

std::string SelfTest::reason() const {
    std::string text;
    for (const auto& name : failed)
        text += (text.empty() ? "in ring 0 it fails at " : ", ") + name;
    if (million_instructions_s < kEnough)
        text += fmt::format("{} {:.1f} million instructions a second",
                            text.empty() ? "in ring 0 it executes only" : " and executes",
                            million_instructions_s);
    return text;
}

} // namespace doppel::cpu::kvm
