// SPDX-License-Identifier: Apache-2.0
#include "vmm/crash_report.hpp"

#include <array>
#include <iterator>

#include <fmt/format.h> // format_to: core.h alone does not link where clang compiles

namespace doppel::vmm {

using namespace cpu::x86;

namespace {

const char* mode_name(const CpuState& state) {
    if ((state.cr0 & CR0_PE) == 0)
        return "real mode";
    if ((state.rflags & FLAG_VM) != 0)
        return "virtual-8086 mode";
    if ((state.efer & EFER_LMA) != 0)
        return state.segment[Cs].is_long() ? "64-bit mode" : "compatibility mode";
    return state.segment[Cs].default_big() ? "32-bit protected mode" : "16-bit protected mode";
}

constexpr std::array<const char*, 16> kNames{"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
                                             "rsi", "rdi", "r8",  "r9",  "r10", "r11",
                                             "r12", "r13", "r14", "r15"};

} // namespace

void add_events(std::back_insert_iterator<std::string> add, const EventLog& events) {
    fmt::format_to(add, "  last exceptions and interrupts, the newest last:\n");
    for (std::size_t i = 0; i < events.size(); ++i)
        fmt::format_to(add, "    {}\n", describe(events[i]));
}

std::string crash_report(unsigned index, Vcpu& vcpu) {
    const auto& s = vcpu.state();
    std::string out;
    const auto add = std::back_inserter(out);
    fmt::format_to(add, "the guest crashed: triple fault on vCPU {}\n", index);
    fmt::format_to(add, "  {}, privilege level {}, paging {}\n", mode_name(s), s.cpl,
                   (s.cr0 & CR0_PG) != 0 ? "on" : "off");
    fmt::format_to(add, "  cs:rip {:04x}:{:016x}  rflags {:08x}\n", s.segment[Cs].selector, s.rip,
                   s.rflags);
    for (std::size_t i = 0; i < 16; ++i)
        fmt::format_to(add, "{}{:>4} {:016x}{}", i % 4 == 0 ? "  " : " ", kNames[i], s.gpr[i],
                       i % 4 == 3 ? "\n" : "");
    fmt::format_to(add, "  cr0 {:08x}  cr2 {:016x}  cr3 {:016x}  cr4 {:08x}  efer {:04x}\n", s.cr0,
                   s.cr2, s.cr3, s.cr4, s.efer);
    fmt::format_to(add,
                   "  idt {:016x} limit {:04x}  gdt {:016x} limit {:04x}  ss {:04x}  tr {:04x}\n",
                   s.idtr.base, s.idtr.limit, s.gdtr.base, s.gdtr.limit, s.segment[Ss].selector,
                   s.tr.selector);
    const auto& stats = vcpu.stats();
    fmt::format_to(add, "  so far: {} exceptions, {} interrupts, {} port and {} MMIO accesses\n",
                   stats.exceptions, stats.interrupts, stats.pio_accesses, stats.mmio_accesses);
    if (const auto* const events = vcpu.events(); events != nullptr)
        add_events(add, *events);
    return out;
}

} // namespace doppel::vmm
