// SPDX-License-Identifier: Apache-2.0
/// What people read about a VM, and what its run loop does with an engine's exits: with a vCPU that
/// runs no guest.
#include <doctest/doctest.h>

#include <array>
#include <deque>

#include "vmm/crash_report.hpp"
#include "vmm/statistics.hpp"
#include "vmm/vcpu_thread.hpp"

using namespace doppel;
using cpu::x86::TakenEvent;

namespace {

/// Leaves guest code with the exits it was given, then halts for ever.
class ScriptedVcpu final : public cpu::x86::Vcpu {
public:
    std::string_view engine_name() const override { return "scripted"; }
    cpu::VmExit run() override {
        ++runs;
        if (script.empty())
            return cpu::HaltExit{};
        auto exit = std::move(script.front());
        script.pop_front();
        return exit;
    }
    void kick() noexcept override {}
    void notify() noexcept override {}
    void reset() override {}
    void save(state::Encoder&) const override {}
    base::Result<void> load(state::Decoder&) override { return {}; }
    cpu::VcpuStats stats() const override { return counts; }
    cpu::x86::CpuState& state() override { return cpu; }
    void state_changed() override {}
    const cpu::x86::EventLog* events() const override { return has_events ? &log : nullptr; }

    std::deque<cpu::VmExit> script; // before the thread runs
    std::atomic<int> runs{0};
    cpu::x86::CpuState cpu;
    cpu::VcpuStats counts;
    cpu::x86::EventLog log;
    bool has_events = true;
};

bool has(const std::string& text, std::string_view words) {
    return text.find(words) != std::string::npos;
}

} // namespace

TEST_CASE("a crash report says where the CPU stood and what struck it last") {
    ScriptedVcpu vcpu;
    vcpu.cpu.cr0 = cpu::x86::CR0_PE | cpu::x86::CR0_PG;
    vcpu.cpu.rip = 0x1234;
    vcpu.cpu.cr2 = 0xdead0;
    vcpu.log.add({.kind = TakenEvent::Kind::Interrupt, .vector = 0x30, .rip = 0x1000});
    vcpu.log.add({.kind = TakenEvent::Kind::Exception,
                  .vector = 14,
                  .has_error_code = true,
                  .error_code = 2,
                  .rip = 0x1234,
                  .cr2 = 0xdead0});
    const auto report = vmm::crash_report(3, vcpu);
    for (const char* words :
         {"triple fault on vCPU 3", "16-bit protected mode", "paging on", "0000000000001234",
          "cr2 00000000000dead0", "interrupt 0x30 at rip 1000\n    #PF error 0002 at rip 1234"}) {
        CAPTURE(report);
        CHECK(has(report, words));
    }
    vcpu.has_events = false;
    CHECK_FALSE(has(vmm::crash_report(0, vcpu), "last exceptions"));
}

TEST_CASE("statistics are sums over all vCPUs, and a kind of event that never came has no line") {
    std::array<ScriptedVcpu, 2> vcpus;
    std::vector<vmm::VcpuFigures> figures;
    for (auto& vcpu : vcpus) {
        vcpu.counts.pio_accesses = 20;
        vcpu.counts.exits = {{"poll", 5}, {"stale", 1}};
        vcpu.log.add({.kind = TakenEvent::Kind::Exception, .vector = 14});
        figures.push_back({vcpu.counts, vcpu.events(), 1'500'000'000, 7});
    }
    const auto text = vmm::format_statistics("scripted", 2'000'000'000, figures);
    for (const char* line : {"engine: scripted\n", "vCPUs: 2\n", "port accesses: 40\n",
                             "exits, poll: 10\n", "exits, stale: 2\n", "exceptions, #PF: 2\n",
                             "halted sleeps: 14\n", "VM time, s: 2.000\n"}) {
        CAPTURE(text);
        CHECK(has(text, line));
    }
    CHECK_FALSE(has(text, "#GP"));
}

TEST_CASE("what ends a VM is reported once per exit, and the vCPU then waits until it may go on") {
    auto owned = std::make_unique<ScriptedVcpu>();
    auto& vcpu = *owned;
    vcpu.script.emplace_back(cpu::KickExit{});
    vcpu.script.emplace_back(cpu::ShutdownExit{});
    vcpu.script.emplace_back(cpu::ResetExit{});
    vcpu.script.emplace_back(cpu::ErrorExit{{base::Errc::Internal, 0, "lost", {}, {}}});
    std::vector<std::size_t> seen; // read while the thread is paused
    vmm::VcpuThread thread{5, std::move(owned), [&](unsigned index, cpu::VmExit exit) {
                               CHECK(index == 5);
                               seen.push_back(exit.index());
                           }};
    thread.start();
    const std::array<std::size_t, 3> expected{cpu::VmExit{cpu::ShutdownExit{}}.index(),
                                              cpu::VmExit{cpu::ResetExit{}}.index(),
                                              cpu::VmExit{cpu::ErrorExit{}}.index()};
    for (std::size_t i = 0; i < expected.size(); ++i) {
        thread.resume();
        while (vcpu.runs.load() < static_cast<int>(i) + 2)
            std::this_thread::yield();
        thread.wait_paused(); // nobody asked: the exit did it
        REQUIRE(seen.size() == i + 1);
        CHECK(seen.at(i) == expected.at(i));
        CHECK(vcpu.runs.load() == static_cast<int>(i) + 2);
    }
    thread.stop();
}
