// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/interpreter/vcpu/interpreter_vcpu.hpp"

#include "cpu/x86/cpu_state_schema.hpp"
#include "cpu/x86/interpreter/interpreter.hpp"
#include "cpu/x86/native/native_unit.hpp"
#include "cpu/x86/system/system.hpp"

namespace doppel::cpu::x86 {

struct InterpreterVcpu::Parts {
    Parts(const VcpuWiring& wiring, unsigned vcpu_count, std::unique_ptr<native::NativeUnit> unit)
        : index{wiring.index}, meter{wiring.meter}, board{wiring}, vectors{std::move(unit)},
          system{make_context(state, board, wiring, vcpu_count)}, interpreter{system, *vectors} {}

    unsigned index;
    InstructionMeter* meter;
    CpuState state;
    WiredBoard board;
    std::unique_ptr<native::NativeUnit> vectors;
    SystemContext system;
    Interpreter interpreter;
};

base::Result<std::unique_ptr<InterpreterVcpu>>
InterpreterVcpu::create(const VcpuWiring& wiring, unsigned vcpu_count, Rendezvous* others) {
    auto unit = DOPPEL_TRY(native::NativeUnit::create());
    auto parts = std::make_unique<Parts>(wiring, vcpu_count, std::move(unit));
    std::unique_ptr<InterpreterVcpu> vcpu{new InterpreterVcpu{std::move(parts), others}};
    vcpu->reset();
    return vcpu;
}

InterpreterVcpu::InterpreterVcpu(std::unique_ptr<Parts> parts, Rendezvous* others)
    : parts_{std::move(parts)}, others_{others} {
    if (others_ == nullptr)
        return;
    others_->attach(*this);
    parts_->board.set_others(*others_, *this);
}

InterpreterVcpu::~InterpreterVcpu() {
    if (others_ != nullptr)
        others_->detach(*this);
}

VmExit InterpreterVcpu::run() {
    if (others_ == nullptr)
        return run_loop();
    others_->enter_run(*this);
    VmExit exit = run_loop();
    others_->leave_run(*this);
    return exit;
}

VmExit InterpreterVcpu::run_loop() {
    SystemContext& cx = parts_->system;
    Interpreter& interpreter = parts_->interpreter;
    InstructionMeter* const meter = parts_->meter;
    attention_.store(true, std::memory_order_relaxed); // the caller may have changed anything
    for (std::uint64_t steps = 0; step_limit_ == 0 || steps < step_limit_; ++steps) {
        if (meter != nullptr && meter->left() == 0) // before events: they come at the new time
            return LimitExit{};
        if (attention_.load(std::memory_order_relaxed) || needs_service(cx)) [[unlikely]] {
            attention_.store(false);
            if (safepoint_.exchange(false))
                others_->safepoint(*this);
            if (kicked_.exchange(false)) {
                attention_.store(true);
                ++counts_.kicks;
                return KickExit{};
            }
            switch (service_events(cx)) {
            case Next::Execute: break;
            case Next::Halted: ++counts_.halts; return HaltExit{};
            case Next::Shutdown: return ShutdownExit{};
            }
        }
        const std::uint64_t before = interpreter.executed();
        const StepResult result = interpreter.step();
        if (meter != nullptr)
            meter->count(interpreter.executed() - before);
        if (result == StepResult::Shutdown)
            return ShutdownExit{};
    }
    return KickExit{};
}

void InterpreterVcpu::kick() noexcept {
    kicked_.store(true);
    attention_.store(true);
}

void InterpreterVcpu::request_safepoint() noexcept {
    safepoint_.store(true);
    attention_.store(true);
}

void InterpreterVcpu::notify() noexcept { attention_.store(true); }

void InterpreterVcpu::reset() {
    x86::reset(parts_->system, parts_->index == 0 ? Bootstrap::Yes : Bootstrap::No);
    state_changed();
}

CpuState& InterpreterVcpu::state() { return parts_->state; }

void InterpreterVcpu::state_changed() { x86::state_changed(parts_->system); }
const EventLog* InterpreterVcpu::events() const { return &parts_->system.events; }

VcpuStats InterpreterVcpu::stats() const {
    VcpuStats stats = counts_;
    stats.instructions = parts_->interpreter.instructions();
    stats.executed = parts_->interpreter.executed();
    stats.exceptions = parts_->system.events.exceptions();
    stats.interrupts = parts_->system.events.count(TakenEvent::Kind::Interrupt);
    stats.tlb_misses = parts_->system.tlb.misses();
    stats.tlb_flushes = parts_->system.tlb.flushes();
    stats.mmio_accesses = parts_->board.mmio_accesses();
    stats.pio_accesses = parts_->board.pio_accesses();
    if (parts_->index == 0 && others_ != nullptr) { // of the whole VM
        stats.stops = others_->counts().stops;
        stats.stop_waiting_ns = others_->counts().waited_ns;
    }
    return stats;
}

void InterpreterVcpu::save(state::Encoder& to) const { save_cpu_state(to, parts_->state); }

base::Result<void> InterpreterVcpu::load(state::Decoder& from) {
    DOPPEL_TRY_VOID(load_cpu_state(from, parts_->state));
    state_changed();
    return {};
}

} // namespace doppel::cpu::x86
