// SPDX-License-Identifier: Apache-2.0
#include "cpu/kvm/kvm_vcpu.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <mutex>

#include <fmt/core.h>

#include "cpu/kvm/kvm_apic.hpp"
#include "cpu/kvm/kvm_machine.hpp"
#include "cpu/kvm/kvm_vcpu_parts.hpp"
#include "cpu/x86/cpu_state_schema.hpp"

namespace doppel::cpu::kvm {

using base::Result;

int kick_signal() { return SIGRTMIN; }

namespace {

void install_kick_signal() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action{};
        action.sa_handler = [](int) {}; // that KVM_RUN returns is all
        ::sigaction(kick_signal(), &action, nullptr);
    });
}

void unblock_kick_signal() {
    sigset_t mask;
    ::sigemptyset(&mask);
    ::sigaddset(&mask, kick_signal());
    ::pthread_sigmask(SIG_UNBLOCK, &mask, nullptr);
}

} // namespace

// --- creation ---------------------------------------------------------------------------------

Result<std::unique_ptr<KvmVcpu>> KvmVcpu::create(KvmMachine& machine, const x86::VcpuWiring& wiring,
                                                 unsigned vcpu_count) {
    install_kick_signal();
    auto fd = DOPPEL_TRY(machine.create_vcpu(wiring.index));
    auto parts = std::make_unique<Parts>(wiring, vcpu_count);
    std::unique_ptr<KvmVcpu> vcpu{new KvmVcpu{machine, wiring, std::move(fd), std::move(parts)}};
    DOPPEL_TRY_VOID(vcpu->map_run_page());
    vcpu->reset();
    DOPPEL_TRY_VOID(vcpu->set_cpuid());
    vcpu->find_msrs();
    machine.add_vcpu(wiring.index, *vcpu);
    return vcpu;
}

KvmVcpu::KvmVcpu(KvmMachine& machine, const x86::VcpuWiring& wiring, Descriptor fd,
                 std::unique_ptr<Parts> parts)
    : machine_{machine}, wiring_{wiring}, fd_{std::move(fd)}, parts_{std::move(parts)},
      has_xcrs_{machine.system().capability(KVM_CAP_XCRS) > 0} {}

KvmVcpu::~KvmVcpu() {
    if (run_ != nullptr)
        ::munmap(run_, run_bytes_);
}

Result<void> KvmVcpu::map_run_page() {
    run_bytes_ = machine_.system().vcpu_map_bytes();
    void* page = fd_.syscalls().map(fd_.get(), run_bytes_);
    if (page == MAP_FAILED)
        return base::fail_errno(errno, "map a vCPU's page");
    run_ = static_cast<kvm_run*>(page);
    return {};
}

// --- the Vcpu interface -----------------------------------------------------------------------

x86::CpuState& KvmVcpu::state() { return parts_->state; }

void KvmVcpu::state_changed() {
    x86::state_changed(parts_->system);
    changed_ = true;
}

void KvmVcpu::reset() {
    using enum x86::Bootstrap;
    x86::reset(parts_->system, wiring_.index == 0 ? Yes : No);
    injected_ = Injected::Drop;
    access_open_ = false;
    state_changed();
}

void KvmVcpu::save(state::Encoder& to) const { x86::save_cpu_state(to, parts_->state); }

Result<void> KvmVcpu::load(state::Decoder& from) {
    DOPPEL_TRY_VOID(x86::load_cpu_state(from, parts_->state));
    injected_ = Injected::Drop;
    access_open_ = false;
    state_changed();
    return {};
}

// --- from other threads -----------------------------------------------------------------------

/// The byte first: KVM_RUN looks at it on entry, and the signal ends what has entered before.
void KvmVcpu::interrupt_kernel() noexcept {
    __atomic_store_n(&run_->immediate_exit, std::uint8_t{1}, __ATOMIC_SEQ_CST);
    if (const auto thread = thread_.load(); thread != 0 && thread != ::gettid())
        ::tgkill(::getpid(), thread, kick_signal());
}

void KvmVcpu::kick() noexcept {
    kicked_.store(true);
    interrupt_kernel();
}

void KvmVcpu::notify() noexcept { interrupt_kernel(); }

// --- the loop ---------------------------------------------------------------------------------

VmExit KvmVcpu::run() {
    thread_.store(::gettid());
    unblock_kick_signal();
    for (;;) {
        // Cleared before the flags are looked at: whoever sets it later has set his flag before.
        __atomic_store_n(&run_->immediate_exit, std::uint8_t{0}, __ATOMIC_SEQ_CST);
        if (auto exit = take_events())
            return leave(std::move(*exit));
        if (auto exit = step())
            return leave(std::move(*exit));
    }
}

/// What comes from outside and between two instructions. INIT and SIPI get here only with a loaded
/// state or from the board: IPIs stay in the kernel.
std::optional<VmExit> KvmVcpu::take_events() {
    if (kicked_.exchange(false)) {
        ++counts_.kicks;
        return KickExit{};
    }
    if (auto failure = machine_.failure())
        return ErrorExit{std::move(*failure)};
    if (parts_->state.activity == x86::Activity::Shutdown)
        return ShutdownExit{};
    std::uint8_t vector = 0;
    const bool waits = parts_->state.activity == x86::Activity::WaitForSipi;
    Result<void> done{};
    switch (wiring_.interrupts->take_event(false, changed_ && waits, vector)) {
    case CpuEvent::None: break;
    case CpuEvent::Nmi:
        if (auto sent = fd_.call_value(DOPPEL_KVM_REQUEST(KVM_NMI)); !sent)
            return ErrorExit{std::move(sent).error()};
        break;
    case CpuEvent::Init:
        complete_access();
        done = pull();
        wiring_.interrupts->init_reset();
        x86::init(parts_->system, wiring_.index == 0 ? x86::Bootstrap::Yes : x86::Bootstrap::No);
        changed_ = true;
        break;
    case CpuEvent::Sipi:
        x86::start_up(parts_->system, vector);
        changed_ = true;
        break;
    }
    if (done && changed_)
        done = push();
    if (done)
        done = push_tsc_offset();
    if (done)
        done = push_deadline();
    if (done)
        done = offer_external_interrupt();
    if (!done)
        return ErrorExit{std::move(done).error()};
    return std::nullopt;
}

std::optional<VmExit> KvmVcpu::step() {
    const int result = fd_.try_call(DOPPEL_KVM_REQUEST(KVM_RUN), nullptr);
    access_open_ = false;
    if (result == 0)
        return handle_exit();
    if (errno == EINTR || errno == EAGAIN) // kicked; an INIT has arrived
        return std::nullopt;
    return ErrorExit{base::fail_errno(errno, "KVM_RUN").error()};
}

/// An access that was handled becomes an executed instruction at the next entry, which this makes
/// without running the guest.
void KvmVcpu::complete_access() {
    if (!access_open_)
        return;
    __atomic_store_n(&run_->immediate_exit, std::uint8_t{1}, __ATOMIC_SEQ_CST);
    fd_.try_call(DOPPEL_KVM_REQUEST(KVM_RUN), nullptr);
    access_open_ = false;
}

/// The kernel's count of the APIC's timer goes on while the vCPU stands, and its end becomes an
/// interrupt only in the loop of KVM_RUN: until then nothing shows it. So it is noted whether a
/// count was under way (apic() sees that it ended), and what ended just now is settled.
Result<std::optional<VmExit>> KvmVcpu::note_timer() {
    const auto image = DOPPEL_TRY(fetch_apic());
    timer_counted_ = timer_counts(image);
    return timer_ended_silently(image) ? settle_timer() : std::nullopt;
}

/// An entry that a waiting signal ends before the guest runs; should it come to something before,
/// that is what run() returns with.
std::optional<VmExit> KvmVcpu::settle_timer() {
    sigset_t kick, before;
    ::sigemptyset(&kick);
    ::sigaddset(&kick, kick_signal());
    ::pthread_sigmask(SIG_BLOCK, &kick, &before);
    ::tgkill(::getpid(), ::gettid(), kick_signal());
    std::array<std::uint32_t, 3> blocks_none{8, 0, 0}; // kvm_signal_mask: length, the kernel's set
    std::optional<VmExit> exit;
    __atomic_store_n(&run_->immediate_exit, std::uint8_t{0}, __ATOMIC_SEQ_CST);
    if (fd_.try_call(DOPPEL_KVM_REQUEST(KVM_SET_SIGNAL_MASK), blocks_none.data()) == 0) {
        exit = step();
        fd_.try_call(DOPPEL_KVM_REQUEST(KVM_SET_SIGNAL_MASK), nullptr);
    }
    constexpr timespec kAtOnce{};
    ::sigtimedwait(&kick, nullptr, &kAtOnce);
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return exit;
}

VmExit KvmVcpu::leave(VmExit exit) {
    complete_access();
    auto other = note_timer();
    if (other && *other) {
        complete_access();
        kicked_.store(true); // what `exit` was for is asked for again
        exit = std::move(**other);
    }
    Result<void> pulled{};
    if (!other)
        pulled = std::unexpected(std::move(other).error());
    else if (!changed_)
        pulled = pull();
    thread_.store(0);
    if (std::holds_alternative<ShutdownExit>(exit))
        parts_->state.activity = x86::Activity::Shutdown;
    if (!pulled && !std::holds_alternative<ErrorExit>(exit))
        return ErrorExit{std::move(pulled).error()};
    return exit;
}

// --- the 8259's interrupts --------------------------------------------------------------------

/// The PIC is the board's: its INTR wire reaches LINT0, whose LVT entry is in the kernel, which
/// therefore says when an interrupt of that kind may come (Linux api.rst, ready_for_interrupt_…).
Result<void> KvmVcpu::offer_external_interrupt() {
    run_->request_interrupt_window = 0;
    if (!wiring_.interrupts->intr_pending())
        return {};
    if (access_open_ || run_->ready_for_interrupt_injection == 0) {
        run_->request_interrupt_window = 1;
        return {};
    }
    const auto vector = wiring_.interrupts->acknowledge_intr();
    run_->ready_for_interrupt_injection = 0;
    return vector ? inject(*vector) : Result<void>{};
}

/// As an injected event rather than by KVM_INTERRUPT: that one cannot be asked back when the VM is
/// saved before the guest has got it.
Result<void> KvmVcpu::inject(std::uint8_t vector) {
    auto events = DOPPEL_TRY(get_events());
    events.interrupt.injected = 1;
    events.interrupt.soft = 0;
    events.interrupt.nr = vector;
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_SET_VCPU_EVENTS), events));
    kvm_mp_state awake{KVM_MP_STATE_RUNNABLE};
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_SET_MP_STATE), awake));
    ++counts_.interrupts;
    return {};
}

} // namespace doppel::cpu::kvm
