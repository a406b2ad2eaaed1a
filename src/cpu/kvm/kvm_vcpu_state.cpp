// SPDX-License-Identifier: Apache-2.0
/// The state of a vCPU to and from the kernel. Part of KvmVcpu.
///
/// The order matters (Linux 6.1 arch/x86/kvm/x86.c): CPUID before everything, the TSC offset before
/// a deadline; on the way back the MP state first, because asking for it makes the kernel take a
/// waiting INIT or SIPI, which changes the rest.
#include <array>
#include <atomic>
#include <cstring>
#include <span>
#include <utility>

#include <fmt/core.h>

#include "base/log.hpp"
#include "cpu/kvm/kvm_apic.hpp"
#include "cpu/kvm/kvm_machine.hpp"
#include "cpu/kvm/kvm_vcpu_parts.hpp"
#include "cpu/x86/system/cpuid.hpp"
#include "cpu/x86/system/exceptions.hpp"
#include "cpu/x86/system/msr.hpp"

namespace doppel::cpu::kvm {

using base::Result;

namespace {

constexpr std::uint32_t IA32_APIC_BASE = 0x1b, IA32_MCG_CAP = 0x179, IA32_TSC_DEADLINE = 0x6e0;
constexpr Request kGetMsrs = DOPPEL_KVM_TABLE_REQUEST(KVM_GET_MSRS),
                  kSetMsrs = DOPPEL_KVM_TABLE_REQUEST(KVM_SET_MSRS),
                  kGetXsave{sized(KVM_GET_XSAVE, sizeof(XsaveRegion)), "KVM_GET_XSAVE"},
                  kSetXsave{sized(KVM_SET_XSAVE, sizeof(XsaveRegion)), "KVM_SET_XSAVE"};

/// One call for `places`; how many of them the kernel took before it met one that it refuses.
Result<std::size_t> transfer_msrs(const Descriptor& fd, Request request,
                                  std::span<const MsrPlace> places) {
    Table<kvm_msr_entry> table{places.size()};
    for (std::size_t i = 0; i < places.size(); ++i)
        table.set(i, {.index = places[i].index, .reserved = 0, .data = *places[i].value});
    const auto done = static_cast<std::size_t>(DOPPEL_TRY(fd.call(request, table.head())));
    if (request.number == kGetMsrs.number)
        for (std::size_t i = 0; i < done; ++i)
            *places[i].value = table.get(i).data;
    return done;
}

} // namespace

// --- CPUID ------------------------------------------------------------------------------------

/// The model's tables with the run-time parts of the system layer (APIC id, topology); OSXSAVE and
/// the sizes of leaf 0DH are kept up to date by the kernel.
Result<void> KvmVcpu::set_cpuid() {
    const auto& model = wiring_.model->cpuid;
    Table<kvm_cpuid_entry2> table{model.size()};
    for (std::size_t i = 0; i < model.size(); ++i) {
        const auto registers = cpuid_leaf(parts_->system, model[i].leaf, model[i].subleaf);
        kvm_cpuid_entry2 entry{};
        entry.function = model[i].leaf;
        entry.index = model[i].subleaf;
        entry.flags = model[i].has_subleaves ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
        entry.eax = registers.eax;
        entry.ebx = registers.ebx;
        entry.ecx = registers.ecx;
        // SYSCALL is there in every mode; whether it shows is the kernel's affair.
        entry.edx = entry.function == 0x8000'0001 ? model[i].registers.edx : registers.edx;
        table.set(i, entry);
    }
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_TABLE_REQUEST(KVM_SET_CPUID2), table.head()));
    std::uint64_t mcg_cap = 0;
    if (x86::read_msr(parts_->system, IA32_MCG_CAP, mcg_cap)) // what our models' IA32_MCG_CAP says
        DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_X86_SETUP_MCE), mcg_cap));
    return {};
}

// --- MSRs -------------------------------------------------------------------------------------

constexpr std::uint32_t kSpecCtrl = 0x48; // IA32_SPEC_CTRL

/// A KVM without some MSR is no failure (some have fewer than the CPU models know): the system
/// layer then keeps it, and serves the guest's accesses.
void KvmVcpu::find_msrs() {
    std::array<MsrPlace, kMaxMsrs> places{};
    const auto count = msr_places(parts_->state, places);
    for (const auto& place : std::span{places}.first(count)) {
        if (place.index == kSpecCtrl && !machine_.system().has_speculation_control())
            continue;
        std::uint64_t value = 0;
        const MsrPlace probe{place.index, &value};
        if (transfer_msrs(fd_, kGetMsrs, {&probe, 1}).value_or(0) == 1)
            msrs_.push_back(place);
    }
}

Result<void> KvmVcpu::pull_msrs() {
    std::span<const MsrPlace> left{msrs_};
    while (!left.empty()) {
        const auto done = DOPPEL_TRY(transfer_msrs(fd_, kGetMsrs, left));
        left = left.subspan(std::min(done + 1, left.size())); // the one it stopped at keeps
    }
    return {};
}

/// What the kernel refuses to set is skipped and said once: a saved VM must not fail to start for
/// an MSR that no guest looks at.
Result<void> KvmVcpu::push_msrs() {
    static base::RateLimit told{8};
    std::span<const MsrPlace> left{msrs_};
    while (!left.empty()) {
        const auto done = DOPPEL_TRY(transfer_msrs(fd_, kSetMsrs, left));
        if (done < left.size() && told.allow())
            base::log_debug("kvm: MSR {:#x} does not take {:#x}", left[done].index,
                            *left[done].value);
        left = left.subspan(std::min(done + 1, left.size()));
    }
    return {};
}

Result<std::uint64_t> KvmVcpu::get_msr(std::uint32_t index) const {
    std::uint64_t value = 0;
    const MsrPlace place{index, &value};
    if (DOPPEL_TRY(transfer_msrs(fd_, kGetMsrs, {&place, 1})) != 1)
        return base::fail(base::Errc::Unsupported, fmt::format("KVM has no MSR {:#x}", index));
    return value;
}

Result<void> KvmVcpu::set_msr(std::uint32_t index, std::uint64_t value) {
    const MsrPlace place{index, &value};
    if (DOPPEL_TRY(transfer_msrs(fd_, kSetMsrs, {&place, 1})) != 1)
        return base::fail(base::Errc::Unsupported,
                          fmt::format("KVM's MSR {:#x} does not take {:#x}", index, value));
    return {};
}

// --- time -------------------------------------------------------------------------------------

/// The guest's TSC is the host's plus this; it moves when the VM was paused and when the guest
/// writes its TSC. A VM that knows another frequency needs a CPU that scales.
Result<void> KvmVcpu::push_tsc_offset() {
    std::uint64_t offset = 0;
    const bool is_host = wiring_.tsc->is_host_tsc(offset);
    if (const auto hz = wiring_.tsc->frequency_hz(); !is_host && tsc_hz_ != hz) {
        if (auto set = fd_.call_value(DOPPEL_KVM_REQUEST(KVM_SET_TSC_KHZ), hz / 1000); !set)
            return base::fail(
                base::Errc::Unsupported,
                fmt::format("engine kvm: this CPU's TSC cannot run at the {} MHz that "
                            "the guest knows",
                            hz / 1'000'000),
                "use --engine translator");
        tsc_hz_ = hz;
    }
    offset += parts_->state.tsc_offset;
    if (tsc_offset_ == offset)
        return {};
    kvm_device_attr attribute{};
    attribute.group = KVM_VCPU_TSC_CTRL;
    attribute.attr = KVM_VCPU_TSC_OFFSET;
    attribute.addr = reinterpret_cast<std::uintptr_t>(&offset);
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_SET_DEVICE_ATTR), attribute));
    tsc_offset_ = offset;
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_GET_DEVICE_ATTR), attribute)); // into `offset`
    tsc_skew_ = offset - *tsc_offset_;
    static std::atomic<bool> told{false};
    if (tsc_skew_ != 0 && !told.exchange(true))
        base::log_info("engine kvm: this host's KVM does not set a guest's TSC: the guest reads "
                       "the host's, which jumps when it goes on elsewhere");
    return {};
}

/// The kernel computes when a deadline is due at the moment it is set: so it has none while the
/// vCPU stands (the guest's TSC stands, too), and gets it back with the offset in force.
Result<void> KvmVcpu::push_deadline() {
    if (deadline_ == 0)
        return {};
    return set_msr(IA32_TSC_DEADLINE, std::exchange(deadline_, 0) + tsc_skew_);
}

Result<void> KvmVcpu::take_deadline() {
    const auto armed = DOPPEL_TRY(get_msr(IA32_TSC_DEADLINE));
    deadline_ = armed != 0 ? armed - tsc_skew_ : 0;
    return armed != 0 ? set_msr(IA32_TSC_DEADLINE, 0) : Result<void>{};
}

// --- the whole --------------------------------------------------------------------------------

Result<kvm_vcpu_events> KvmVcpu::get_events() const {
    kvm_vcpu_events events{};
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_GET_VCPU_EVENTS), events));
    return events;
}

Result<void> KvmVcpu::push_fpu() {
    if (has_xcrs_) {
        kvm_xcrs xcrs{};
        xcrs.nr_xcrs = 1;
        xcrs.xcrs[0].value = parts_->state.xcr0;
        DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_SET_XCRS), xcrs));
    }
    auto area = to_xsave(parts_->state);
    DOPPEL_TRY(fd_.call(kSetXsave, area));
    return {};
}

Result<void> KvmVcpu::pull_fpu() {
    if (has_xcrs_) {
        kvm_xcrs xcrs{};
        DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_GET_XCRS), xcrs));
        if (xcrs.nr_xcrs > 0)
            parts_->state.xcr0 = xcrs.xcrs[0].value;
    }
    XsaveRegion area{};
    DOPPEL_TRY(fd_.call(kGetXsave, area));
    from_xsave(area, parts_->state);
    return {};
}

Result<void> KvmVcpu::push() {
    const auto& state = parts_->state;
    DOPPEL_TRY_VOID(push_tsc_offset());
    kvm_sregs2 kernel{};
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_GET_SREGS2), kernel));
    auto sregs = to_sregs(state, kernel);
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_SET_SREGS2), sregs));
    auto regs = to_regs(state);
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_SET_REGS), regs));
    DOPPEL_TRY_VOID(push_msrs());
    DOPPEL_TRY_VOID(push_fpu());
    auto debug = to_debugregs(state);
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_SET_DEBUGREGS), debug));
    auto events = to_events(state, DOPPEL_TRY(get_events()), injected_);
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_SET_VCPU_EVENTS), events));
    kvm_mp_state activity{to_mp_state(state.activity)};
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_SET_MP_STATE), activity));
    run_->ready_for_interrupt_injection = 0; // as of the state before
    injected_ = Injected::Keep;
    changed_ = false;
    return {};
}

Result<void> KvmVcpu::pull() {
    auto& state = parts_->state;
    kvm_mp_state activity{};
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_GET_MP_STATE), activity));
    state.activity = from_mp_state(activity.mp_state);
    kvm_regs regs{};
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_GET_REGS), regs));
    from_regs(regs, state);
    kvm_sregs2 sregs{};
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_GET_SREGS2), sregs));
    from_sregs(sregs, state);
    kvm_debugregs debug{};
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_GET_DEBUGREGS), debug));
    from_debugregs(debug, state);
    DOPPEL_TRY_VOID(pull_msrs());
    DOPPEL_TRY_VOID(pull_fpu());
    x86::state_changed(parts_->system);
    DOPPEL_TRY_VOID(take_deadline());
    return pull_events();
}

/// An interrupt that the local APIC handed out and the guest has not begun is put back there
/// (apic()). One of the PIC cannot be put back: it was acknowledged, so it is delivered now.
Result<void> KvmVcpu::pull_events() {
    injected_ = Injected::Keep;
    const auto flying = from_events(DOPPEL_TRY(get_events()), parts_->state);
    if (!flying.interrupt)
        return {};
    auto image = DOPPEL_TRY(fetch_apic());
    if (take_back(image, *flying.interrupt))
        return {};
    injected_ = Injected::Drop;
    changed_ = true;
    if (!deliver_interrupt(parts_->system, *flying.interrupt))
        parts_->state.activity = x86::Activity::Shutdown;
    return {};
}

// --- the local APIC ---------------------------------------------------------------------------

Result<ApicImage> KvmVcpu::fetch_apic() const {
    kvm_lapic_state lapic{};
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_GET_LAPIC), lapic));
    auto image = from_lapic(lapic);
    image.base = DOPPEL_TRY(get_msr(IA32_APIC_BASE));
    image.tsc_deadline = deadline_;
    return image;
}

Result<void> KvmVcpu::store_apic(const ApicImage& image) {
    DOPPEL_TRY_VOID(set_msr(IA32_APIC_BASE, image.base));
    auto lapic = to_lapic(image);
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_REQUEST(KVM_SET_LAPIC), lapic));
    deadline_ = image.tsc_deadline;
    return set_msr(IA32_TSC_DEADLINE, 0);
}

ApicImage KvmVcpu::apic() noexcept {
    auto image = fetch_apic();
    auto events = get_events();
    if (!image || !events) {
        machine_.fail_later(image ? std::move(events).error() : std::move(image).error());
        return {};
    }
    if (timer_counted_ && timer_ended_silently(*image))
        request_timer(*image);
    if (injected_ == Injected::Keep) {
        x86::CpuState unused;
        const auto flying = from_events(*events, unused);
        if (flying.interrupt)
            take_back(*image, *flying.interrupt);
        image->nmi_pending = flying.nmi;
    }
    return *image;
}

void KvmVcpu::set_apic(const ApicImage& image) noexcept {
    if (auto done = store_apic(image); !done)
        machine_.fail_later(std::move(done).error());
    timer_counted_ = timer_counts(image);
    injected_ = Injected::Drop;
    changed_ = true;
}

} // namespace doppel::cpu::kvm
