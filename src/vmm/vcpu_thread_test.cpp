// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "vmm/vcpu_thread.hpp"

using namespace doppel;

namespace {

/// Runs until it is kicked, or halts; counts, as a guest would, while it runs.
class CountingVcpu final : public cpu::x86::Vcpu {
public:
    explicit CountingVcpu(bool halts) : halts_{halts} {}
    std::string_view engine_name() const override { return "counting"; }
    cpu::VmExit run() override {
        while (!kicked.exchange(false)) {
            count.fetch_add(1);
            if (halts_)
                return cpu::HaltExit{};
        }
        return cpu::KickExit{};
    }
    void kick() noexcept override { kicked.store(true); }
    void notify() noexcept override {}
    void reset() override {}
    void save(state::Encoder&) const override {}
    base::Result<void> load(state::Decoder&) override { return {}; }
    cpu::VcpuStats stats() const override { return {}; }
    cpu::x86::CpuState& state() override { return state_; }
    void state_changed() override {}

    std::atomic<std::uint64_t> count{0};
    std::atomic<bool> kicked{false};

private:
    const bool halts_;
    cpu::x86::CpuState state_;
};

} // namespace

TEST_CASE("a paused vCPU stands still, and every resume lets it go on, however quickly they come") {
    for (const bool halts : {false, true}) {
        CAPTURE(halts);
        auto vcpu = std::make_unique<CountingVcpu>(halts);
        auto& guest = *vcpu;
        vmm::VcpuThread thread{0, std::move(vcpu), [](unsigned, cpu::VmExit) {}};
        thread.start();
        for (int round = 0; round < 1000; ++round) {
            thread.resume();
            thread.request_pause();
            thread.wait_paused();
            const auto stands = guest.count.load();
            if (round % 100 == 0)
                std::this_thread::yield();
            REQUIRE(guest.count.load() == stands);
        }
        const auto before = guest.count.load();
        thread.resume();
        thread.notify();
        while (guest.count.load() == before)
            std::this_thread::yield();
    }
}
