// SPDX-License-Identifier: Apache-2.0
#include "cpu/kvm/kvm_machine.hpp"

#include <array>
#include <cerrno>

#include <fmt/core.h>

#include "base/log.hpp"
#include "base/verify.hpp"
#include "cpu/kvm/kvm_vcpu.hpp"

namespace doppel::cpu::kvm {

using base::Result;

namespace {

/// Four pages that KVM needs on Intel CPUs (real mode without unrestricted guests), where the board
/// has neither RAM nor a device: below the firmware's flash at the end of the 32-bit space.
constexpr std::uint64_t kIdentityMap = 0xfffb'c000, kTss = 0xfffb'd000;

/// The board's MSRs (devices::PvClock) and the two by which a guest moves its TSC come to us, so
/// that they mean the same on every engine. A clear bit refuses the kernel's own answer.
struct FilteredRange {
    std::uint32_t flags, base, count;
};
constexpr std::uint32_t kRead = KVM_MSR_FILTER_READ, kWrite = KVM_MSR_FILTER_WRITE;
constexpr FilteredRange kFilteredMsrs[] = {
    {kWrite, 0x10, 3},                // IA32_TSC; kvmclock's legacy numbers
    {kRead, 0x11, 2},                 // the latter
    {kWrite, 0x3b, 1},                // IA32_TSC_ADJUST
    {kRead | kWrite, 0x4b56'4d00, 8}, // kvmclock and its neighbours
};
constexpr FilteredRange kSpeculationMsrs{kRead | kWrite, 0x48, 2}; // IA32_SPEC_CTRL, IA32_PRED_CMD

kvm_enable_cap capability(std::uint32_t number, std::uint64_t argument) {
    kvm_enable_cap cap{};
    cap.cap = number;
    cap.args[0] = argument;
    return cap;
}

} // namespace

KvmMachine::KvmMachine(KvmSystem system, Descriptor vm, memory::GuestMemory& memory)
    : system_{std::move(system)}, vm_{std::move(vm)}, memory_{memory} {}

Result<std::unique_ptr<KvmMachine>> KvmMachine::create(KvmSystem system,
                                                       memory::GuestMemory& memory) {
    auto vm = DOPPEL_TRY(system.create_vm());
    std::unique_ptr<KvmMachine> machine{new KvmMachine{std::move(system), std::move(vm), memory}};
    DOPPEL_TRY_VOID(machine->enable_capabilities());
    DOPPEL_TRY_VOID(machine->filter_msrs());
    DOPPEL_TRY_VOID(machine->set_slots(0));
    return machine;
}

Result<void> KvmMachine::enable_capabilities() {
    auto identity = kIdentityMap;
    DOPPEL_TRY(vm_.call(DOPPEL_KVM_REQUEST(KVM_SET_IDENTITY_MAP_ADDR), identity));
    DOPPEL_TRY(vm_.call_value(DOPPEL_KVM_REQUEST(KVM_SET_TSS_ADDR), kTss));
    const std::array wanted{
        capability(KVM_CAP_SPLIT_IRQCHIP, kIoApicInputs),
        capability(KVM_CAP_X2APIC_API,
                   KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK),
        capability(KVM_CAP_X86_USER_SPACE_MSR,
                   KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER),
        capability(KVM_CAP_EXCEPTION_PAYLOAD, 1),
    };
    for (auto cap : wanted) {
        auto done = vm_.call(DOPPEL_KVM_REQUEST(KVM_ENABLE_CAP), cap);
        if (!done)
            return std::unexpected(
                std::move(done).error().with_context(fmt::format("capability {}", cap.cap)));
    }
    return {};
}

Result<void> KvmMachine::filter_msrs() {
    std::uint8_t none = 0; // one byte of clear bits serves every range
    kvm_msr_filter filter{};
    filter.flags = KVM_MSR_FILTER_DEFAULT_ALLOW;
    std::size_t count = 0;
    const auto add = [&](const FilteredRange& range) {
        filter.ranges[count++] = {range.flags, range.count, range.base, &none};
    };
    for (const auto& range : kFilteredMsrs)
        add(range);
    if (!system_.has_speculation_control())
        add(kSpeculationMsrs);
    DOPPEL_TRY(vm_.call(DOPPEL_KVM_REQUEST(KVM_X86_SET_MSR_FILTER), filter));
    return {};
}

Result<void> KvmMachine::set_slots(std::uint32_t flags) {
    std::uint32_t slot = 0;
    for (const auto& region : memory_.engine_regions()) {
        kvm_userspace_memory_region kernel{};
        kernel.slot = slot++;
        kernel.flags = flags;
        kernel.guest_phys_addr = region.base.value;
        kernel.memory_size = region.size_bytes;
        kernel.userspace_addr = reinterpret_cast<std::uintptr_t>(region.host);
        DOPPEL_TRY(vm_.call(DOPPEL_KVM_REQUEST(KVM_SET_USER_MEMORY_REGION), kernel));
    }
    return {};
}

Result<Descriptor> KvmMachine::create_vcpu(unsigned index) {
    const int fd = DOPPEL_TRY(vm_.call_value(DOPPEL_KVM_REQUEST(KVM_CREATE_VCPU), index));
    return Descriptor{vm_.syscalls(), base::UniqueFd{fd}};
}

void KvmMachine::add_vcpu(unsigned index, KvmVcpu& vcpu) {
    if (vcpus_.size() <= index)
        vcpus_.resize(index + 1);
    vcpus_[index] = &vcpu;
}

HostedApic& KvmMachine::apic(unsigned vcpu) {
    DOPPEL_VERIFY(vcpu < vcpus_.size() && vcpus_[vcpu] != nullptr, "the vCPU was made before");
    return *vcpus_[vcpu];
}

// --- interrupts -------------------------------------------------------------------------------

/// 0: a guest's APIC refused it; both are the guest's affair.
void KvmMachine::send_msi(bus::MsiMessage message) noexcept {
    kvm_msi msi{};
    msi.address_lo = static_cast<std::uint32_t>(message.address);
    msi.address_hi = static_cast<std::uint32_t>(message.address >> 32);
    msi.data = message.data;
    if (vm_.try_call(DOPPEL_KVM_REQUEST(KVM_SIGNAL_MSI), &msi) < 0 && errno != EINVAL)
        base::log_debug("kvm: MSI {:#x} {:#x}: errno {}", message.address, message.data, errno);
}

void KvmMachine::end_of_interrupt(std::uint8_t vector) noexcept {
    if (eoi_sink_ != nullptr)
        eoi_sink_->broadcast_eoi(vector);
}

Result<void> KvmMachine::update_routes() {
    Table<kvm_irq_routing_entry> table{routes_.size()};
    std::size_t i = 0;
    for (const auto& [gsi, message] : routes_) {
        kvm_irq_routing_entry entry{};
        entry.gsi = gsi;
        entry.type = KVM_IRQ_ROUTING_MSI;
        entry.u.msi.address_lo = static_cast<std::uint32_t>(message.address);
        entry.u.msi.address_hi = static_cast<std::uint32_t>(message.address >> 32);
        entry.u.msi.data = message.data;
        table.set(i++, entry);
    }
    DOPPEL_TRY(vm_.call(DOPPEL_KVM_TABLE_REQUEST(KVM_SET_GSI_ROUTING), table.head()));
    return {};
}

/// The kernel reports the end of an interrupt that it finds in these routes (Linux api.rst 7.5).
/// Setting them waits for every vCPU to have seen it, so only a change is told.
void KvmMachine::set_level_route(std::uint32_t input,
                                 std::optional<bus::MsiMessage> message) noexcept {
    const base::MutexLock lock{routes_mutex_};
    const auto found = routes_.find(input);
    if (!message && found == routes_.end())
        return;
    if (message && found != routes_.end() && found->second.address == message->address &&
        found->second.data == message->data)
        return;
    if (message)
        routes_[input] = *message;
    else
        routes_.erase(found);
    if (auto done = update_routes(); !done)
        fail_later(std::move(done).error());
}

Result<std::uint32_t> KvmMachine::add_irqfd(int eventfd, bus::MsiMessage message) {
    const base::MutexLock lock{routes_mutex_};
    std::uint32_t gsi = kIoApicInputs;
    while (routes_.contains(gsi))
        ++gsi;
    routes_[gsi] = message;
    auto done = update_routes();
    if (done) {
        kvm_irqfd irqfd{};
        irqfd.fd = static_cast<std::uint32_t>(eventfd);
        irqfd.gsi = gsi;
        if (auto bound = vm_.call(DOPPEL_KVM_REQUEST(KVM_IRQFD), irqfd); !bound)
            done = std::unexpected(std::move(bound).error());
    }
    if (done)
        return gsi;
    routes_.erase(gsi);
    return std::unexpected(std::move(done).error());
}

Result<void> KvmMachine::remove_irqfd(std::uint32_t gsi, int eventfd) {
    kvm_irqfd irqfd{};
    irqfd.fd = static_cast<std::uint32_t>(eventfd);
    irqfd.gsi = gsi;
    irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
    DOPPEL_TRY(vm_.call(DOPPEL_KVM_REQUEST(KVM_IRQFD), irqfd));
    const base::MutexLock lock{routes_mutex_};
    routes_.erase(gsi);
    return update_routes();
}

// --- doorbells --------------------------------------------------------------------------------

Result<void> KvmMachine::call_doorbell(const Doorbell& doorbell, int eventfd, std::uint32_t flags) {
    kvm_ioeventfd kernel{};
    kernel.addr = doorbell.address;
    kernel.len = doorbell.size_bytes;
    kernel.fd = eventfd;
    kernel.flags = flags;
    if (doorbell.space == Doorbell::Space::Pio)
        kernel.flags |= KVM_IOEVENTFD_FLAG_PIO;
    if (doorbell.value) {
        kernel.flags |= KVM_IOEVENTFD_FLAG_DATAMATCH;
        kernel.datamatch = *doorbell.value;
    }
    DOPPEL_TRY(vm_.call(DOPPEL_KVM_REQUEST(KVM_IOEVENTFD), kernel));
    return {};
}

Result<void> KvmMachine::add_doorbell(const Doorbell& doorbell, int eventfd) {
    return call_doorbell(doorbell, eventfd, 0);
}

Result<void> KvmMachine::remove_doorbell(const Doorbell& doorbell, int eventfd) {
    return call_doorbell(doorbell, eventfd, KVM_IOEVENTFD_FLAG_DEASSIGN);
}

/// The kernel has room for some 1000; beyond that a write exits to us, as everywhere else.
void KvmMachine::hang(std::uint64_t address, int eventfd) noexcept {
    if (const auto done = add_doorbell({.address = address}, eventfd); !done)
        base::log_debug("no doorbell at {:#x}: {}", address, done.error().message());
}

void KvmMachine::take_down(std::uint64_t address, int eventfd) noexcept {
    (void)remove_doorbell({.address = address}, eventfd); // fails where none hangs
}

// --- dirty log --------------------------------------------------------------------------------

void KvmMachine::start() noexcept {
    if (auto done = set_slots(KVM_MEM_LOG_DIRTY_PAGES); !done)
        fail_later(std::move(done).error());
}

void KvmMachine::stop() noexcept {
    if (auto done = set_slots(0); !done)
        fail_later(std::move(done).error());
}

/// A log that cannot be read counts as all written: a copy of RAM may cost more, never miss a page.
void KvmMachine::collect(memory::GuestMemory& memory) noexcept {
    std::uint32_t slot = 0;
    for (const auto& region : memory.regions()) {
        const auto pages = region.size_bytes / memory::kPageBytes;
        std::vector<std::uint64_t> bits((pages + 63) / 64);
        kvm_dirty_log log{};
        log.slot = slot++;
        log.dirty_bitmap = bits.data();
        if (auto done = vm_.call(DOPPEL_KVM_REQUEST(KVM_GET_DIRTY_LOG), log); !done) {
            fail_later(std::move(done).error());
            bits.assign(bits.size(), ~std::uint64_t{0});
        }
        memory.note_engine_writes(region.base, bits);
    }
}

// --- failures ---------------------------------------------------------------------------------

std::optional<base::Error> KvmMachine::failure() const {
    if (!failed_.load(std::memory_order_acquire))
        return std::nullopt;
    const base::MutexLock lock{failure_mutex_};
    return failure_;
}

void KvmMachine::fail_later(base::Error error) noexcept {
    base::log_error("kvm: {}", error.message());
    const base::MutexLock lock{failure_mutex_};
    if (!failure_)
        failure_ = std::move(error);
    failed_.store(true, std::memory_order_release);
}

} // namespace doppel::cpu::kvm
