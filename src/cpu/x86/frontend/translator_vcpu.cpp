// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/translator_vcpu.hpp"
#include "cpu/x86/cpu_state_schema.hpp"

#include <sys/mman.h>
#include <sys/random.h>

#include <array>
#include <cerrno>

#include "base/log.hpp"
#include "base/verify.hpp"
#include "cpu/x86/frontend/checker.hpp"
#include "cpu/x86/frontend/direct/direct_users.hpp"
#include "cpu/x86/frontend/host_signals.hpp"
#include "cpu/x86/frontend/world.hpp"
#include "cpu/x86/native/native_unit.hpp"

namespace doppel::cpu::x86 {

using namespace frontend;
using translator::TlbInstance;
using translator::TlbSet;

namespace {

/// Of Exit, for people.
constexpr std::array<const char*, 10> kExitNames{"TLB miss",
                                                 "stack page miss",
                                                 "miss in compact code",
                                                 "jump not linked",
                                                 "indirect branch not cached",
                                                 "stale block",
                                                 "poll",
                                                 "to interpreter",
                                                 "host fault",
                                                 "end of the budget"};
static_assert(kExitNames.size() == static_cast<std::size_t>(Exit::Count));

std::uint64_t unguessable() {
    std::uint64_t value = 0;
    DOPPEL_VERIFY(::getrandom(&value, sizeof value, 0) == sizeof value,
                  "the host's random numbers");
    return value;
}

/// NativeUnit for a caller that may have guest vectors live.
class StoringUnit final : public VectorUnit {
public:
    StoringUnit(native::NativeUnit& unit, VectorState& vectors) : unit_{unit}, vectors_{vectors} {}
    bool execute(SystemContext& cx, const Instruction& instruction, const std::uint8_t* bytes,
                 std::uint64_t next) noexcept override {
        vectors_.store();
        return unit_.execute(cx, instruction, bytes, next);
    }

private:
    native::NativeUnit& unit_;
    VectorState& vectors_;
};

/// Zeroed pages for the TLB instances, backed when first touched.
class TlbMemory {
public:
    static constexpr std::size_t kBytes = TlbSet::kMemoryBytes + TlbInstance::kAlignment;
    TlbMemory()
        : raw_{::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)} {
        DOPPEL_VERIFY(raw_ != MAP_FAILED, "memory for the soft TLB");
    }
    ~TlbMemory() { ::munmap(raw_, kBytes); }
    TlbMemory(const TlbMemory&) = delete;
    TlbMemory& operator=(const TlbMemory&) = delete;
    std::byte* aligned() const {
        const auto address = reinterpret_cast<std::uintptr_t>(raw_);
        return reinterpret_cast<std::byte*>((address + TlbInstance::kAlignment - 1) &
                                            ~(TlbInstance::kAlignment - 1));
    }

private:
    void* raw_;
};

TlbSet::NoStack no_stack(const Frame& frame) {
    const std::uint64_t page = FrameHeader::no_stack_page(unguessable());
    return {.page = page, .addend = reinterpret_cast<std::uint64_t>(&frame.nowhere) - page};
}

} // namespace

TranslatorMachine::TranslatorMachine(std::unique_ptr<World> world, TranslatorOptions options)
    : world_{std::move(world)}, options_{options} {}
TranslatorMachine::~TranslatorMachine() = default;

base::Result<std::unique_ptr<TranslatorMachine>>
TranslatorMachine::create(memory::GuestMemory& memory, TranslatorOptions options) {
    if (!__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2") ||
        !__builtin_cpu_supports("avx"))
        return base::fail(base::Errc::Unsupported,
                          "the translator needs a host CPU with BMI1, BMI2 and AVX",
                          "use the engine 'interpreter'");
    auto world = DOPPEL_TRY(World::create(memory, options));
    return std::unique_ptr<TranslatorMachine>{new TranslatorMachine{std::move(world), options}};
}

struct TranslatorVcpu::Parts final : ColdPath, cpu::Rendezvous::Participant {
    Parts(World& shared, const VcpuWiring& wires, unsigned vcpu_count, TranslatorOptions options,
          std::unique_ptr<native::NativeUnit> native)
        : world{shared}, checks{options.check}, wiring{wires}, vectors{frame.state.xsave},
          wired{wires}, board{wired, vectors}, native_unit{std::move(native)},
          unit{*native_unit, vectors}, system{make_context(frame.state, board, wires, vcpu_count)},
          interpreter{system, unit}, tlbs{tlb_memory.aligned(), no_stack(frame)},
          write_marks{wires.memory->size_bytes() / memory::kPageBytes},
          dispatcher{frame,         system,        interpreter, tlbs,
                     world.cache(), world.stubs(), vectors,     *this},
          checker{system, interpreter} {
        DOPPEL_VERIFY(!options.check || wires.meter != nullptr, "a checker compares counts");
        if (options.check)
            dispatcher.set_observer(&checker);
        dispatcher.set_meter(wires.meter);
        dispatcher.set_tuning(options.tuning);
        dispatcher.set_chaos(options.chaos, wires.index);
        if (options.block_limit != 0)
            dispatcher.set_block_limit(options.block_limit);
        frame.header.shared_branches = reinterpret_cast<std::uint64_t>(tlbs.shared_branches());
        system.tlb_listener = &dispatcher;
        wired.set_others(world.rendezvous(), *this);
        system.ram.marks = &write_marks;
        // Who counts, compares or stops at each block must see each block.
        if (options.tuning.direct && wires.meter == nullptr && options.block_limit == 0) {
            direct = std::make_unique<DirectUsers>(
                system, wires.memory->fd(), wires.memory->size_bytes() / memory::kPageBytes,
                options.tuning.direct_always ? DirectUsers::When::Always
                                             : DirectUsers::When::Worthwhile,
                [this](std::span<const std::uint64_t> pages) {
                    return world.watch_code(*this, pages);
                },
                [this](std::uint64_t page) { return world.users_blocks(page); },
                world.guarded_calls());
            dispatcher.set_user_runner(direct.get());
        }
        world.attach({this, &dispatcher, &write_marks, direct.get()});
    }
    ~Parts() {
        world.detach(*this);
        report();
    }
    Parts(const Parts&) = delete;
    Parts& operator=(const Parts&) = delete;

    translator::Block* translate(const translator::BlockKey& key, std::uint64_t rip,
                                 const std::byte* host, const std::byte* second) override {
        return world.translate(*this, key, rip, host, second, system.features);
    }
    void link(const Site& site, std::uint64_t address, translator::Block& target) override {
        world.link(site, address, target);
    }
    bool link_landing(const Site& site, std::uint64_t address, const std::uint8_t* host) override {
        return world.link_landing(site, address, host);
    }
    void promote(const std::uint8_t* host_code) override { world.promote(host_code); }
    const CheckSite& find_check(const std::uint8_t* behind) override {
        return world.find_check(behind);
    }
    bool find_loop(const translator::Block& head, const std::byte* host,
                   LoopCounter& counter) override {
        return world.find_loop(head, host, system.features, counter);
    }
    translator::Block* make_loop(translator::Block& head, std::uint64_t rip,
                                 const std::byte* host) override {
        return world.make_loop(head, rip, host, system.features);
    }
    bool has_event() override { return wiring.interrupts->has_event(); }
    void safepoint() override { world.rendezvous().safepoint(*this); }
    void disturb(Chaos::Act act, std::uint64_t random) override {
        world.disturb(*this, act, random);
    }
    void request_safepoint() noexcept override { dispatcher.request_safepoint(); }

    /// For people who look for what is slow, or wrong.
    void report() const {
        for (unsigned op = 0; op < static_cast<unsigned>(Op::Count); ++op)
            if (dispatcher.interpreted()[op] > 1000)
                base::log_debug("vCPU {}: operation {} interpreted {} times", wiring.index, op,
                                dispatcher.interpreted()[op]);
        if (checks)
            base::log_warning("vCPU {}: {} blocks checked, {} differences", wiring.index,
                              checker.compared(), checker.differences());
    }

    World& world;
    const bool checks;
    VcpuWiring wiring;
    Frame frame;
    VectorState vectors;
    WiredBoard wired;
    VectorSavingBoard board;
    std::unique_ptr<native::NativeUnit> native_unit;
    StoringUnit unit;
    SystemContext system;
    Interpreter interpreter;
    TlbMemory tlb_memory;
    TlbSet tlbs;
    cpu::WriteMarks write_marks;
    std::unique_ptr<DirectUsers> direct; // may be null
    Dispatcher dispatcher;
    Checker checker;
};

base::Result<std::unique_ptr<TranslatorVcpu>>
TranslatorVcpu::create(TranslatorMachine& machine, const VcpuWiring& wiring, unsigned vcpu_count) {
    auto unit = DOPPEL_TRY(native::NativeUnit::create());
    auto parts = std::make_unique<Parts>(*machine.world_, wiring, vcpu_count, machine.options_,
                                         std::move(unit));
    std::unique_ptr<TranslatorVcpu> vcpu{new TranslatorVcpu{std::move(parts)}};
    vcpu->reset();
    return vcpu;
}

TranslatorVcpu::TranslatorVcpu(std::unique_ptr<Parts> parts) : parts_{std::move(parts)} {}
TranslatorVcpu::~TranslatorVcpu() = default;

VmExit TranslatorVcpu::run() {
    const SignalScope signals{parts_->world.cache(), parts_->world.stubs()};
    std::uint64_t host_offset = 0;
    const bool host_tsc = parts_->wiring.tsc->is_host_tsc(host_offset);
    parts_->dispatcher.set_tsc(host_tsc, host_offset);
    if (parts_->direct != nullptr)
        parts_->direct->set_tsc(host_tsc, host_offset);
    parts_->world.rendezvous().enter_run(*parts_);
    const auto result = parts_->dispatcher.run();
    parts_->world.rendezvous().leave_run(*parts_);
    switch (result) {
    case Dispatcher::Result::Kick: ++counts_.kicks; return KickExit{};
    case Dispatcher::Result::Limit: return LimitExit{};
    case Dispatcher::Result::Halted: ++counts_.halts; return HaltExit{};
    default: return ShutdownExit{};
    }
}

void TranslatorVcpu::kick() noexcept { parts_->dispatcher.kick(); }
void TranslatorVcpu::notify() noexcept { parts_->dispatcher.notify(); }

void TranslatorVcpu::reset() {
    x86::reset(parts_->system, parts_->wiring.index == 0 ? Bootstrap::Yes : Bootstrap::No);
    state_changed();
}

std::uint64_t TranslatorVcpu::blocks_checked() const { return parts_->checker.compared(); }
std::uint64_t TranslatorVcpu::blocks_different() const { return parts_->checker.differences(); }

CpuState& TranslatorVcpu::state() { return parts_->frame.state; }
void TranslatorVcpu::state_changed() { parts_->dispatcher.state_changed(); }
void TranslatorVcpu::drop_write_permissions() { parts_->dispatcher.drop_all_writes(); }
const EventLog* TranslatorVcpu::events() const { return &parts_->system.events; }

/// In translated code RIP is where the block began, or at the last of its instructions before
/// `host_pc` that could fault: these are known. Nobody holds the cache's mutex while in there.
GuestPlace TranslatorVcpu::place(const void* host_pc) noexcept {
    GuestPlace place = Vcpu::place(host_pc);
    auto& cache = parts_->world.cache();
    const auto* at = static_cast<const std::uint8_t*>(host_pc);
    if (!cache.memory().contains(at))
        return place;
    if (parts_->world.stubs().shared.contains(at))
        at = reinterpret_cast<const std::uint8_t*>(parts_->frame.header.call_slot);
    const base::MutexLock lock{cache.mutex()};
    const translator::Block* const block = cache.find_by_host(at);
    if (block == nullptr)
        return place; // another stub
    std::uint64_t offset = block->key.gpa & 0xfff;
    for (const auto& site : cache.signal_sites(*block))
        if (!site.is_poll && block->begin + site.host_offset <= at)
            offset = site.page_offset;
    place.rip = parts_->frame.header.page_va + offset;
    return place;
}

VcpuStats TranslatorVcpu::stats() const {
    VcpuStats stats = counts_;
    parts_->dispatcher.count(stats);
    if (parts_->wiring.index == 0) { // of the whole VM: whoever adds up counts it once
        auto& cache = parts_->world.cache();
        stats.translations = cache.blocks_made();
        stats.translated_guest_bytes = cache.guest_bytes();
        stats.code_cache_bytes = cache.code_bytes();
        const auto& cost = parts_->world.cost();
        stats.translated_instructions = cost.instructions();
        stats.translation_ns = cost.ns_per_instruction();
        stats.code_cache_evictions = cache.evictions();
        stats.host_bytes_percent = cost.median_percent();
        const auto stops = parts_->world.rendezvous().counts();
        stats.stops = stops.stops;
        stats.stop_waiting_ns = stops.waited_ns;
        stats.loops = cache.loops_made();
    }
    if (parts_->direct != nullptr) {
        const auto& direct = parts_->direct->counts();
        const auto hertz = static_cast<double>(parts_->system.tsc_frequency_hz);
        stats.direct_ns =
            static_cast<std::uint64_t>(static_cast<double>(direct.cycles) * 1e9 / hertz);
        stats.direct_runs = direct.runs;
        stats.direct_pages = direct.pages;
        stats.direct_given_up = direct.given_up;
    }
    const auto& events = parts_->system.events;
    stats.exceptions = events.exceptions();
    stats.interrupts = events.count(TakenEvent::Kind::Interrupt);
    stats.mmio_accesses = parts_->wired.mmio_accesses();
    stats.pio_accesses = parts_->wired.pio_accesses();
    for (std::size_t i = 0; i < kExitNames.size(); ++i)
        stats.exits.push_back({kExitNames.at(i), parts_->dispatcher.exits(static_cast<Exit>(i))});
    return stats;
}

void TranslatorVcpu::save(state::Encoder& to) const { save_cpu_state(to, parts_->frame.state); }

base::Result<void> TranslatorVcpu::load(state::Decoder& from) {
    DOPPEL_TRY_VOID(load_cpu_state(from, parts_->frame.state));
    state_changed();
    return {};
}

} // namespace doppel::cpu::x86
