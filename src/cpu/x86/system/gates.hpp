// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What interrupt gates, call gates and far transfers share: checking a code segment, finding the
/// stack of an inner privilege level, entering the segment. Vol. 3A §5.8, §7.12.
#include "cpu/x86/system/descriptor.hpp"
#include "cpu/x86/system/stack.hpp"

namespace doppel::cpu::x86 {

/// An event on its way through the IDT.
struct Event {
    enum class Source : std::uint8_t {
        Hardware,   // INTR, NMI
        Exception,  // faults and traps
        Software,   // INT n, INT3, INTO: the gate's DPL counts, EXT is 0
        Privileged, // INT1
    };
    std::uint8_t vector = 0;
    Source source = Source::Exception;
    bool has_error_code = false;
    std::uint32_t error_code = 0;
    std::uint64_t return_rip = 0;
    bool resume_flag = false; // RF in the pushed image

    std::uint32_t ext() const { return source == Source::Software ? 0 : 1; }
};

/// Through the IDT of the current mode; on failure the fault of the delivery is in cx.fault.
[[nodiscard]] bool deliver_event(SystemContext& cx, const Event& event);
/// Through the real-mode vector table at `table` (real mode; V86 with VME: 0).
[[nodiscard]] bool deliver_real(SystemContext& cx, const Event& event, std::uint64_t table,
                                std::uint32_t limit);

/// Stack for `cpl` from the TSS, with all checks (#TS, #SS with `ext`). In long mode (legacy_stack
/// is not for it) see long_stack().
struct InnerStack {
    Segment segment;
    std::uint64_t pointer = 0;
};
[[nodiscard]] bool legacy_stack(SystemContext& cx, unsigned cpl, std::uint32_t ext,
                                InnerStack& out);
/// RSP from the 64-bit TSS: for privilege `cpl`, or IST slot 1..7 when `ist` is not 0.
[[nodiscard]] bool long_stack(SystemContext& cx, unsigned cpl, unsigned ist, std::uint32_t ext,
                              std::uint64_t& pointer);

/// The null SS that a privilege change loads in long mode.
Segment long_stack_segment(unsigned cpl);

/// Writes CS (selector with RPL = cpl) and the CPL.
void enter_code_segment(SystemContext& cx, const Descriptor& descriptor, std::uint16_t selector,
                        unsigned cpl);
/// Flat segments of SYSCALL and friends.
Segment flat_code(std::uint16_t selector, unsigned dpl, bool is_long);
Segment flat_stack(std::uint16_t selector, unsigned dpl);

/// Task switches (legacy protected mode only).
enum class TaskSource : std::uint8_t { Jump, Call, Interrupt, Return };
struct TaskSwitch {
    std::uint16_t selector = 0; // of the TSS
    TaskSource source = TaskSource::Jump;
    std::uint64_t return_rip = 0; // saved in the old TSS
    std::uint32_t ext = 0;
    bool has_error_code = false; // pushed on the new stack
    std::uint32_t error_code = 0;
    bool resume_flag = false; // RF in the saved EFLAGS
};
[[nodiscard]] bool switch_task(SystemContext& cx, const TaskSwitch& request);
/// Checks a task gate and gives the TSS selector in it; `cpl_checked`: JMP, CALL, INT n.
[[nodiscard]] bool check_task_gate(SystemContext& cx, const Descriptor& gate,
                                   std::uint32_t gate_error, std::uint32_t ext, std::uint16_t& tss);

/// Selector in a TSS field names an LDT/GDT entry whose limit must hold `offset + bytes`.
[[nodiscard]] bool read_tss(SystemContext& cx, std::uint32_t offset, void* to, std::uint32_t bytes,
                            std::uint32_t ext);

} // namespace doppel::cpu::x86
