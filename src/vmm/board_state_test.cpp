// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <random>

#include "chardev/file_sink.hpp"
#include "cpu/x86/frontend/translator_vcpu.hpp"
#include "cpu/x86/interpreter/vcpu/interpreter_vcpu.hpp"
#include "vmm/board_state.hpp"

using namespace doppel;
using namespace doppel::vmm;

namespace {

struct ManualTsc final : cpu::x86::TscSource {
    const base::ManualTime& time;
    explicit ManualTsc(const base::ManualTime& clock) : time{clock} {}
    std::uint64_t read() const noexcept override { return time.now_ns() * 2; }
    std::uint64_t frequency_hz() const noexcept override { return 2'000'000'000; }
    bool is_host_tsc(std::uint64_t&) const noexcept override { return false; }
};

struct FixedWallClock final : base::WallClock {
    Time now() const noexcept override { return {1'709'251'198, 0}; }
};

struct NoPower final : machine::PowerSink {
    void power_off() noexcept override {}
    void reset_requested() noexcept override {}
    void debug_exit(int) noexcept override {}
};

enum class Engine : std::uint8_t { Interpreter, Translator };

/// A board with two vCPUs that do not run.
struct Rig {
    base::ManualTime time;
    ManualTsc tsc{time};
    FixedWallClock wall_clock;
    chardev::NullBackend console;
    NoPower power;
    description::CpuModel model;
    std::unique_ptr<machine::Pc> board;
    std::unique_ptr<cpu::x86::TranslatorMachine> translator;
    std::vector<std::unique_ptr<cpu::x86::Vcpu>> vcpus;
    std::vector<cpu::x86::Vcpu*> pointers;

    explicit Rig(Engine engine = Engine::Interpreter, const char* cpu = "x86-64-v2")
        : model{description::find_cpu_model(cpu).value()} {
        const machine::PcHost host{time, wall_clock, tsc, console, power, model};
        board = machine::Pc::create({64u << 20, 2, std::nullopt}, host).value();
        if (engine == Engine::Translator)
            translator = cpu::x86::TranslatorMachine::create(board->memory(), {}).value();
        for (unsigned i = 0; i < 2; ++i) {
            const auto wiring = board->wiring(i);
            if (translator != nullptr)
                vcpus.push_back(cpu::x86::TranslatorVcpu::create(*translator, wiring, 2).value());
            else
                vcpus.push_back(cpu::x86::InterpreterVcpu::create(wiring, 2).value());
            pointers.push_back(vcpus.back().get());
            board->connect(i, *vcpus.back(), vcpus.back()->state());
        }
    }
    ~Rig() { board->disconnect(); }
    Rig(const Rig&) = delete;
    Rig& operator=(const Rig&) = delete;

    /// A guest that knows nothing and writes everywhere; time passes meanwhile.
    void hammer(std::uint32_t seed, int steps) {
        std::mt19937 random{seed};
        const auto wiring = board->wiring(0);
        constexpr std::array<std::uint16_t, 6> kPorts{0x20, 0x40, 0x60, 0x3f8, 0x600, 0xcf8};
        for (int i = 0; i < steps; ++i) {
            const auto port = kPorts[random() % kPorts.size()] + random() % 8;
            const auto size = static_cast<std::uint8_t>(port >= 0xcf8 ? 4 : 1);
            if (port != 0xcf9)
                wiring.pio->write(port, size, random());
            wiring.mmio->write(random() % 2 == 0 ? 0xfed0'0000 + random() % 64 * 8
                                                 : 0xfec0'0000 + random() % 2 * 16,
                               4, random() % 256);
            for (auto* vcpu : pointers)
                vcpu->state().gpr[random() % 16] = random();
            if (i % 16 == 0)
                time.advance_to(time.now_ns() + random() % 5'000'000);
        }
    }
    SavedVm saved() {
        SavedVm vm;
        vm.clocks.tsc_hz = tsc.frequency_hz();
        save_board(*board, pointers, model, vm);
        return vm;
    }
    std::string load(const SavedVm& vm) {
        const auto loaded = load_board(vm, model, *board, pointers);
        return loaded ? "" : loaded.error().message();
    }
};

} // namespace

TEST_CASE("a whole board: save, load into a fresh one, save gives the same bytes; any engine") {
    for (std::uint32_t seed = 0; seed < 6; ++seed) {
        CAPTURE(seed);
        Rig original{seed % 2 == 0 ? Engine::Interpreter : Engine::Translator};
        original.hammer(seed, 2000);
        const auto bytes = encode_saved_vm(original.saved());
        Rig copy{seed % 3 == 0 ? Engine::Translator : Engine::Interpreter};
        copy.hammer(seed + 100, 500); // its time stays behind: a clock is never set back
        copy.time.advance_to(original.time.now_ns());
        CHECK(copy.load(decode_saved_vm(bytes).value()) == "");
        CHECK(encode_saved_vm(copy.saved()) == bytes);
    }
}

TEST_CASE("every chip and vCPU is saved by its name") {
    Rig rig;
    const auto vm = rig.saved();
    CHECK(vm.vcpus.size() == 2);
    CHECK(vm.vcpus[1].name == "vcpu-1");
    CHECK(vm.chips.size() == rig.board->chips().size());
}

TEST_CASE("the state of another machine is refused with a sentence") {
    Rig rig;
    const auto good = rig.saved();
    auto fewer = good;
    fewer.vcpus.pop_back();
    CHECK(rig.load(fewer).find("1 vCPUs were saved, the machine has 2") != std::string::npos);
    auto without = good;
    without.chips.pop_back();
    CHECK(rig.load(without).find("chips were saved") != std::string::npos);
    auto swapped = good;
    std::swap(swapped.chips[0], swapped.chips[1]);
    CHECK(rig.load(swapped).find("another of the chips") != std::string::npos);
    Rig other{Engine::Interpreter, "x86-64-v1"};
    CHECK(other.load(good).find("CPUID leaf") != std::string::npos);
    auto foreign = good;
    foreign.chips[1].state = foreign.chips[0].state;
    CHECK(rig.load(foreign).find(foreign.chips[1].name) != std::string::npos);
    auto longer = good;
    longer.vcpus[0].state.push_back({});
    CHECK(rig.load(longer).find("left over") != std::string::npos);
    CHECK(rig.load(good).empty());
}
