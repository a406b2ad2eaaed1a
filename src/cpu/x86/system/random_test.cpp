// SPDX-License-Identifier: Apache-2.0
/// Operations on random states: an operation that faults leaves the state as it was, one that
/// succeeds leaves a state that a CPU can be in (validate_cpu_state), whatever the guest has put
/// into its descriptors, page tables and stacks.
#include <doctest/doctest.h>

#include <array>
#include <random>

#include "cpu/x86/cpu_state_schema.hpp"
#include "cpu/x86/system/test_rig.hpp"

using namespace doppel::cpu::x86;
using namespace doppel::cpu::x86::test;

namespace {

enum class Mode : std::uint8_t { Real, Protected, V86, Long, Compatibility };

struct RandomRig : Rig {
    std::mt19937_64 random{20261121};
    std::uint64_t below(std::uint64_t n) { return random() % n; }
    bool chance(unsigned one_in) { return below(one_in) == 0; }

    std::uint16_t selector() {
        return static_cast<std::uint16_t>(chance(8) ? below(0x200) : below(32) * 8 + below(4));
    }
    std::uint64_t address() {
        switch (below(5)) {
        case 0: return random();
        case 1: return random() | 0xffff'8000'0000'0000;
        case 2: return below(0x10000);
        default: return kCode + below(0x100000);
        }
    }
    void random_descriptors() {
        constexpr unsigned accesses[] = {0x9a, 0x98, 0x92, 0x90, 0xfa, 0xf2, 0x9e, 0xfe,
                                         0x96, 0x89, 0x8b, 0x81, 0x83, 0x82, 0x84, 0x85,
                                         0x8c, 0xec, 0xe5, 0x8e, 0x12, 0x1a, 0xbe};
        fill_gdt();
        for (unsigned i = 12; i < 32; ++i) {
            const unsigned access = accesses[below(std::size(accesses))];
            const bool gate = (access & 0x10) == 0 && (access & 15) > 3 && (access & 15) != 9 &&
                              (access & 15) != 11;
            put64(kGdt + i * 8,
                  gate ? gate32(selector(), static_cast<std::uint32_t>(address()), access) |
                             below(4) << 32
                       : descriptor(static_cast<std::uint32_t>(below(0x20000)),
                                    static_cast<std::uint32_t>(below(0x100000)), access,
                                    static_cast<unsigned>(below(16))));
        }
        for (unsigned i = 0; i < 16; ++i)
            if (chance(2))
                put64(kIdt + i * 8,
                      gate32(selector(), static_cast<std::uint32_t>(address()),
                             0x84 + static_cast<unsigned>(below(12)) + (chance(2) ? 0x60 : 0)));
    }
    void random_stack() {
        for (std::uint64_t i = 0; i < 16; ++i) {
            const std::uint64_t value = chance(3) ? random() : chance(2) ? selector() : address();
            put64((state.gpr[Rsp] & 0xfffff8) + i * 8, value);
        }
    }
    void enter(Mode mode) {
        reset(*cx, Bootstrap::Yes);
        const unsigned cpl = chance(2) ? 3 : 0;
        switch (mode) {
        case Mode::Real: break;
        case Mode::Protected: protect(cpl); break;
        case Mode::V86:
            protect(3);
            state.rflags |= FLAG_VM;
            for (auto& segment : state.segment)
                segment = {0xc00, 0xffff, 0xc0, 0xf3};
            break;
        case Mode::Long: long_mode(cpl); break;
        case Mode::Compatibility:
            long_mode(cpl);
            flat(cpl);
            break;
        }
        if (mode != Mode::Real)
            random_descriptors();
        state.rflags |= (random() & (FLAG_IOPL | FLAG_IF | FLAG_AC | kArithmeticFlags)) |
                        (chance(4) ? FLAG_NT : 0) | (chance(4) ? FLAG_VIF : 0);
        state.rip &= 0xffff'ffff;
        if (chance(3))
            state.cr4 |= CR4_VME | CR4_PVI | CR4_UMIP | CR4_FSGSBASE | CR4_OSXSAVE;
        state.sysenter_cs = chance(3) ? 0 : 0x10;
        state.star = 0x0023'0010'0000'0000;
        for (const unsigned i : {Rax, Rcx, Rdx, R11})
            state.gpr[i] = chance(2) ? below(16) : address();
        random_stack();
        state_changed(*cx);
    }

    std::uint32_t size() { return cx->code64() ? 8 : chance(2) ? 4 : 2; }
    std::uint64_t operand() { return cx->code64() ? address() : address() & 0xffff'ffff; }

    static constexpr unsigned kOperations = 26;
    bool run(unsigned operation) {
        auto& c = *cx;
        bool flag = false;
        std::uint32_t word = 0;
        switch (operation) {
        case 0: return load_segment(c, chance(2) ? Ss : chance(2) ? Ds : Gs, selector());
        case 1: return load_ldtr(c, selector());
        case 2: return load_tr(c, selector());
        case 3: return far_return(c, size(), static_cast<std::uint32_t>(below(32)));
        case 4: return software_interrupt(c, static_cast<std::uint8_t>(below(256)), state.rip + 2);
        case 5: return int3(c, state.rip + 1);
        case 6: return int1(c, state.rip + 1);
        case 7: return syscall(c, state.rip + 2);
        case 8: return sysret(c, size());
        case 9: return sysenter(c);
        case 10: return sysexit(c, size());
        case 11: return write_control(c, 0, below(2) ? state.cr0 ^ 1u << below(32) : operand());
        case 12: return write_control(c, 3, operand());
        case 13: return write_control(c, 4, state.cr4 ^ std::uint64_t{1} << below(32));
        case 14: return write_debug(c, static_cast<unsigned>(below(8)), operand());
        case 15: return write_efer(c, state.efer ^ std::uint64_t{1} << below(22));
        case 16: return xsetbv(c);
        case 17: return popf(c, size(), random());
        case 18: return cli(c);
        case 19: return sti(c);
        case 20: return load_access_rights(c, selector(), flag, word);
        case 21: return verify_segment(c, selector(), AccessType::Write, flag);
        case 22: return write_segment_base(c, Gs, operand());
        case 23: return wrmsr_random();
        case 24: return invpcid(c, below(5), random() & (chance(2) ? 0xfff : ~0ull), address());
        default: return check_io(c, static_cast<std::uint16_t>(random()), 1u << below(3));
        }
    }
    bool wrmsr_random() {
        constexpr std::uint32_t indices[] = {
            0x10,       0x3b,       0x48,       0x174,      0x175,      0x176,
            0x1a0,      0x1d9,      0x200,      0x250,      0x277,      0x2ff,
            0x400,      0xda0,      0xc0000080, 0xc0000081, 0xc0000082, 0xc0000084,
            0xc0000100, 0xc0000101, 0xc0000102, 0xc0000103, 0x12345};
        state.gpr[Rcx] = indices[below(std::size(indices))];
        const std::uint64_t value = chance(2) ? address() : random();
        state.gpr[Rax] = value & 0xffffffff;
        state.gpr[Rdx] = value >> 32;
        return wrmsr(*cx);
    }
};

bool same(const CpuState& a, const CpuState& b) {
    doppel::state::Encoder first, second;
    save_cpu_state(first, a);
    save_cpu_state(second, b);
    return std::equal(first.bytes().begin(), first.bytes().end(), second.bytes().begin(),
                      second.bytes().end());
}

} // namespace

TEST_CASE_FIXTURE(RandomRig, "faults change nothing, successes leave a possible state") {
    unsigned faults = 0, successes = 0;
    for (unsigned round = 0; round < 20'000; ++round) {
        const auto mode = static_cast<Mode>(below(5));
        const auto operation = static_cast<unsigned>(below(RandomRig::kOperations));
        enter(mode);
        CpuState before = state;
        const bool done = run(operation);
        const bool msr = operation == 23; // it chose its operands itself
        for (const unsigned i : {Rax, Rcx, Rdx})
            if (msr)
                before.gpr[i] = state.gpr[i];
        const bool possible = validate_cpu_state(state).has_value();
        // A task switch may fault in the new task, with the new task's state.
        const bool switched = state.tr.selector != before.tr.selector;
        if (!possible || (!done && !switched && !same(before, state))) {
            CAPTURE(round);
            CAPTURE(operation);
            CAPTURE(static_cast<int>(mode));
            CAPTURE((possible ? std::string{} : validate_cpu_state(state).error().message()));
            FAIL_CHECK("state after the operation");
        }
        (done ? successes : faults) += 1;
    }
    CHECK(successes > 2000);
    CHECK(faults > 2000);
}

TEST_CASE_FIXTURE(RandomRig, "far jumps, calls, IRET and deliveries from random tables") {
    for (unsigned round = 0; round < 20'000; ++round) {
        const auto mode = static_cast<Mode>(below(5));
        enter(mode);
        const CpuState before = state;
        bool done = false;
        const unsigned which = static_cast<unsigned>(below(4));
        if (which == 0)
            done = far_jump(*cx, selector(), operand(), size(), state.rip + 7);
        else if (which == 1)
            done = far_call(*cx, selector(), operand(), size(), state.rip + 7);
        else if (which == 2)
            done = iret(*cx, size(), state.rip + 1);
        else
            done = deliver_interrupt(*cx, static_cast<std::uint8_t>(below(32)));
        const bool switched = state.tr.selector != before.tr.selector;
        const bool kept = done || which == 3 || switched || same(before, state);
        const bool possible = validate_cpu_state(state).has_value();
        if (!kept || !possible) {
            CAPTURE(round);
            CAPTURE(which);
            CAPTURE(static_cast<int>(mode));
            CAPTURE((possible ? std::string{} : validate_cpu_state(state).error().message()));
            FAIL_CHECK("state after the transfer");
        }
    }
}
