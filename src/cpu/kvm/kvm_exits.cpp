// SPDX-License-Identifier: Apache-2.0
/// What the kernel hands to us (Linux 6.1 Documentation/virt/kvm/api.rst §5). Part of KvmVcpu.
#include <cstring>

#include <fmt/core.h>

#include "cpu/kvm/kvm_machine.hpp"
#include "cpu/kvm/kvm_vcpu_parts.hpp"
#include "cpu/x86/system/msr.hpp"

namespace doppel::cpu::kvm {

namespace {

constexpr const char* kOtherEngine = "this host's KVM cannot run this guest: use --engine "
                                     "translator";

std::uint64_t value_at(const std::uint8_t* from, std::size_t bytes) {
    std::uint64_t value = 0;
    std::memcpy(&value, from, bytes);
    return value;
}

} // namespace

std::optional<VmExit> KvmVcpu::handle_exit() {
    switch (run_->exit_reason) {
    case KVM_EXIT_IO: port_access(); return std::nullopt;
    case KVM_EXIT_MMIO: mmio_access(); return std::nullopt;
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR: msr_access(); return std::nullopt;
    case KVM_EXIT_IOAPIC_EOI: machine_.end_of_interrupt(run_->eoi.vector); return std::nullopt;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN: return std::nullopt;
    case KVM_EXIT_HLT: return HaltExit{}; // only without a local APIC in the kernel
    case KVM_EXIT_SHUTDOWN: return ShutdownExit{};
    case KVM_EXIT_DEBUG: return DebugExit{};
    case KVM_EXIT_INTERNAL_ERROR: return internal_error();
    case KVM_EXIT_FAIL_ENTRY: return entry_failed();
    default:
        return ErrorExit{base::fail(base::Errc::Unsupported,
                                    fmt::format("KVM stopped the guest for reason {}, which this "
                                                "engine does not know",
                                                run_->exit_reason),
                                    kOtherEngine)
                             .error()};
    }
}

/// `count` accesses of a string instruction; the kernel moves the bytes to and from the guest.
void KvmVcpu::port_access() {
    access_open_ = true;
    counts_.pio_accesses += run_->io.count;
    auto* data = reinterpret_cast<std::uint8_t*>(run_) + run_->io.data_offset;
    const auto port = run_->io.port;
    const auto size = run_->io.size;
    for (std::uint32_t i = 0; i < run_->io.count; ++i, data += size) {
        if (run_->io.direction == KVM_EXIT_IO_OUT) {
            parts_->board.pio_write(port, size, value_at(data, size));
        } else {
            const auto value = parts_->board.pio_read(port, size);
            std::memcpy(data, &value, size);
        }
    }
}

/// An access that crosses pages comes in fragments, of any size up to 8: these go byte by byte.
void KvmVcpu::mmio_access() {
    access_open_ = true;
    ++counts_.mmio_accesses;
    const auto gpa = run_->mmio.phys_addr;
    const auto bytes = std::min<std::uint32_t>(run_->mmio.len, 8);
    const bool is_whole = (bytes & (bytes - 1)) == 0;
    const auto step = static_cast<std::uint8_t>(is_whole ? bytes : 1);
    for (std::uint32_t i = 0; i < bytes; i += step) {
        if (run_->mmio.is_write != 0) {
            wiring_.mmio->write(gpa + i, step, value_at(run_->mmio.data + i, step));
        } else {
            const auto value = wiring_.mmio->read(gpa + i, step);
            std::memcpy(run_->mmio.data + i, &value, step);
        }
    }
}

/// MSRs of the board, those of ours that the kernel does not know, and writes that move the TSC.
/// State that the system layer reads here is never the kernel's: it is asked for nothing else.
void KvmVcpu::msr_access() {
    access_open_ = true;
    auto& msr = run_->msr;
    if (run_->exit_reason == KVM_EXIT_X86_WRMSR) {
        msr.error = !x86::write_msr(parts_->system, msr.index, msr.data);
        return;
    }
    std::uint64_t value = 0;
    msr.error = !x86::read_msr(parts_->system, msr.index, value);
    msr.data = value;
}

VmExit KvmVcpu::internal_error() {
    const auto suberror = run_->internal.suberror;
    if (suberror != KVM_INTERNAL_ERROR_EMULATION)
        return ErrorExit{base::fail(base::Errc::Internal,
                                    fmt::format("KVM failed inside (suberror {})", suberror),
                                    kOtherEngine)
                             .error()};
    std::string bytes;
    const auto& failure = run_->emulation_failure;
    if (failure.ndata >= 3 &&
        (failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0)
        for (unsigned i = 0; i < failure.insn_size && i < sizeof failure.insn_bytes; ++i)
            bytes += fmt::format(" {:02x}", failure.insn_bytes[i]);
    kvm_regs regs{};
    const auto known = fd_.call(DOPPEL_KVM_REQUEST(KVM_GET_REGS), regs);
    return ErrorExit{
        base::fail(base::Errc::Unsupported,
                   fmt::format("KVM cannot emulate the guest's instruction at {:#x}{}{}",
                               known ? regs.rip : 0, bytes.empty() ? "" : ", bytes", bytes),
                   kOtherEngine)
            .error()};
}

VmExit KvmVcpu::entry_failed() const {
    return ErrorExit{base::fail(base::Errc::Unsupported,
                                fmt::format("KVM cannot enter the guest (hardware reason {:#x})",
                                            run_->fail_entry.hardware_entry_failure_reason),
                                kOtherEngine)
                         .error()};
}

} // namespace doppel::cpu::kvm
