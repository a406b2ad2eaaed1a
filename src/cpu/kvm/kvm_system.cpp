// SPDX-License-Identifier: Apache-2.0
#include "cpu/kvm/kvm_system.hpp"

#include <algorithm>
#include <array>
#include <cerrno>

#include <fmt/core.h>

namespace doppel::cpu::kvm {

using base::Errc;
using base::Result;

namespace {

constexpr const char* kOtherEngine = "use --engine translator";

struct Capability {
    unsigned long number;
    const char* name;
};
#define CAPABILITY(name) {name, #name}
/// What the engine is built on; all of it is in Linux since 5.16.
constexpr Capability kNeeded[] = {
    CAPABILITY(KVM_CAP_USER_MEMORY),
    CAPABILITY(KVM_CAP_SPLIT_IRQCHIP),
    CAPABILITY(KVM_CAP_IRQFD),
    CAPABILITY(KVM_CAP_IOEVENTFD),
    CAPABILITY(KVM_CAP_SIGNAL_MSI),
    CAPABILITY(KVM_CAP_IRQ_ROUTING),
    CAPABILITY(KVM_CAP_X2APIC_API),
    CAPABILITY(KVM_CAP_TSC_DEADLINE_TIMER),
    CAPABILITY(KVM_CAP_VCPU_EVENTS),
    CAPABILITY(KVM_CAP_DEBUGREGS),
    CAPABILITY(KVM_CAP_MP_STATE),
    CAPABILITY(KVM_CAP_IMMEDIATE_EXIT),
    CAPABILITY(KVM_CAP_EXCEPTION_PAYLOAD),
    CAPABILITY(KVM_CAP_X86_USER_SPACE_MSR),
    CAPABILITY(KVM_CAP_X86_MSR_FILTER),
    CAPABILITY(KVM_CAP_SET_TSS_ADDR),
    CAPABILITY(KVM_CAP_SET_IDENTITY_MAP_ADDR),
    CAPABILITY(KVM_CAP_EXT_CPUID),
    CAPABILITY(KVM_CAP_SREGS2),
    CAPABILITY(KVM_CAP_XSAVE),
    CAPABILITY(KVM_CAP_VCPU_ATTRIBUTES),
};
#undef CAPABILITY

enum class Register : std::uint8_t { Eax, Ebx, Ecx, Edx };

/// A word of feature bits. `ours` are bits that do not come from the CPU: OSXSAVE follows CR4, the
/// hypervisor bit says that there is one; that FCS and FDS are zero is no feature but the lack of
/// one, and a CPU that does not say so (AMD's) can do all else; for IBRS and STIBP see
/// has_speculation_control().
struct FeatureWord {
    const char* name;
    std::uint32_t leaf, subleaf;
    std::uint32_t ours;
    Register where;
};
constexpr FeatureWord kFeatureWords[] = {
    {"CPUID.01H:ECX", 1, 0, 1u << 27 | 1u << 31, Register::Ecx},
    {"CPUID.01H:EDX", 1, 0, 0, Register::Edx},
    {"CPUID.07H:EBX", 7, 0, 1u << 13, Register::Ebx},
    {"CPUID.07H:ECX", 7, 0, 0, Register::Ecx},
    {"CPUID.07H:EDX", 7, 0, 1u << 26 | 1u << 27, Register::Edx},
    {"XCR0", 0xd, 0, 0, Register::Eax},
    {"CPUID.0DH.1:EAX", 0xd, 1, 0, Register::Eax},
    {"CPUID.80000001H:ECX", 0x8000'0001, 0, 0, Register::Ecx},
    {"CPUID.80000001H:EDX", 0x8000'0001, 0, 0, Register::Edx},
};

std::uint32_t pick(const std::array<std::uint32_t, 4>& registers, Register where) {
    return registers[static_cast<std::size_t>(where)];
}

/// "CPUID.07H:EBX bits 5 and 8".
std::string bit_list(const char* name, std::uint32_t bits) {
    std::string text;
    const bool one = (bits & (bits - 1)) == 0;
    for (unsigned bit = 0; bit < 32; ++bit) {
        if ((bits >> bit & 1) == 0)
            continue;
        const bool last = bits >> bit == 1;
        text += text.empty() ? "" : last ? " and " : ", ";
        text += std::to_string(bit);
    }
    return fmt::format("{} {} {}", name, one ? "bit" : "bits", text);
}

std::unexpected<base::Error> cannot_open(int error) {
    switch (error) {
    case ENOENT:
        return base::fail_errno(error, "engine kvm: there is no /dev/kvm",
                                "load the kernel's kvm module (the CPU's virtualization may be off "
                                "in its firmware), or use --engine translator");
    case EACCES:
    case EPERM:
        return base::fail_errno(error, "engine kvm: /dev/kvm may not be opened",
                                "join the group that owns it (usually kvm), or use --engine "
                                "translator");
    default: return base::fail_errno(error, "engine kvm: open /dev/kvm", kOtherEngine);
    }
}

} // namespace

Result<KvmSystem> KvmSystem::open(Syscalls& syscalls) {
    base::UniqueFd fd{syscalls.open("/dev/kvm")};
    if (!fd)
        return cannot_open(errno);
    KvmSystem system{Descriptor{syscalls, std::move(fd)}};
    const int version = DOPPEL_TRY(system.fd_.call_value(DOPPEL_KVM_REQUEST(KVM_GET_API_VERSION)));
    if (version != KVM_API_VERSION)
        return base::fail(Errc::Unsupported,
                          fmt::format("engine kvm: /dev/kvm speaks version {} of its API, not {}",
                                      version, KVM_API_VERSION),
                          kOtherEngine);
    DOPPEL_TRY_VOID(system.check_capabilities());
    const int bytes = DOPPEL_TRY(system.fd_.call_value(DOPPEL_KVM_REQUEST(KVM_GET_VCPU_MMAP_SIZE)));
    if (static_cast<std::size_t>(bytes) < sizeof(kvm_run))
        return base::fail(Errc::Unsupported,
                          fmt::format("engine kvm: a vCPU's page of {} bytes is too small", bytes),
                          kOtherEngine);
    system.vcpu_map_bytes_ = static_cast<std::size_t>(bytes);
    DOPPEL_TRY_VOID(system.read_cpuid());
    return system;
}

int KvmSystem::capability(unsigned long number) const {
    const auto value = fd_.call_value(DOPPEL_KVM_REQUEST(KVM_CHECK_EXTENSION), number);
    return value.value_or(0);
}

Result<void> KvmSystem::check_capabilities() const {
    for (const auto& needed : kNeeded)
        if (capability(needed.number) <= 0)
            return base::fail(Errc::Unsupported,
                              fmt::format("engine kvm: this host's KVM lacks {}", needed.name),
                              kOtherEngine);
    return {};
}

Result<void> KvmSystem::read_cpuid() {
    // The kernel's own limit is KVM_MAX_CPUID_ENTRIES = 256.
    Table<kvm_cpuid_entry2> table{256};
    DOPPEL_TRY(fd_.call(DOPPEL_KVM_TABLE_REQUEST(KVM_GET_SUPPORTED_CPUID), table.head()));
    for (std::size_t i = 0; i < std::min(table.kernel_count(), table.count()); ++i)
        cpuid_.push_back(table.get(i));
    return {};
}

Result<Descriptor> KvmSystem::create_vm() const {
    const int fd = DOPPEL_TRY(fd_.call_value(DOPPEL_KVM_REQUEST(KVM_CREATE_VM)));
    return Descriptor{fd_.syscalls(), base::UniqueFd{fd}};
}

/// `place`: of the register in EAX, EBX, ECX, EDX.
std::uint32_t KvmSystem::offered(std::uint32_t leaf, std::uint32_t subleaf, unsigned place) const {
    for (const auto& entry : cpuid_)
        if (entry.function == leaf && entry.index == subleaf)
            return std::array{entry.eax, entry.ebx, entry.ecx, entry.edx}[place];
    return 0;
}

bool KvmSystem::has_speculation_control() const {
    constexpr std::uint32_t kIbrsAndStibp = 1u << 26 | 1u << 27, kBhiCtrl = 1u << 4;
    return (offered(7, 0, 3) & kIbrsAndStibp) == kIbrsAndStibp &&
           (offered(7, 2, 3) & kBhiCtrl) != 0;
}

std::string KvmSystem::missing_features(const description::CpuModel& model) const {
    std::string text;
    for (const auto& word : kFeatureWords) {
        const auto wanted = model.lookup(word.leaf, word.subleaf);
        const auto present = offered(word.leaf, word.subleaf, static_cast<unsigned>(word.where));
        const auto missing = pick({wanted.eax, wanted.ebx, wanted.ecx, wanted.edx}, word.where) &
                             ~present & ~word.ours;
        if (missing != 0)
            text += (text.empty() ? "" : ", ") + bit_list(word.name, missing);
    }
    return text;
}

} // namespace doppel::cpu::kvm
