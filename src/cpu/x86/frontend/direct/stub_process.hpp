// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A process of the host that executes users' code of the guest on the CPU itself.
///
/// Its memory is what it is given of the guest's RAM, at the guest's own linear addresses, and
/// five pages at a place that nobody can guess. It is traced: whatever would reach the host's
/// kernel stops it first (Linux ptrace(2): PTRACE_SYSEMU; signals). No call of the guest is ever
/// executed; those by which the process arranges its memory are its own page's, which the guest
/// cannot write and which runs only while we let it. Besides, a seccomp filter leaves it nothing
/// else.
///
/// One thread, the tracer, does everything but poke(). When that thread ends so does the process.
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <sys/types.h>

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "cpu/x86/cpu_state.hpp"
#include "cpu/x86/frontend/direct/same_cpu.hpp"
#include "cpu/x86/frontend/direct/stub_code.hpp"

namespace doppel::cpu::x86::frontend {

class StubProcess {
public:
    /// Linux has users' memory below this.
    static constexpr std::uint64_t kEnd = 0x7fff'ffff'f000;

    /// `ram`: the file whose pages will be mapped; not kept. Errors: Unsupported and what the OS
    /// says, as where ptrace is forbidden.
    static base::Result<std::unique_ptr<StubProcess>> create(int ram);
    ~StubProcess();
    StubProcess(const StubProcess&) = delete;
    StubProcess& operator=(const StubProcess&) = delete;

    // --- memory: arranged by flush() ---
    enum class Rights : std::uint8_t {
        Read,
        ReadWrite,
        ReadExecute,
        Execute, // but not read; the offset is into the copies
    };
    /// Pages for Rights::Execute; none where the host's CPU cannot do that (protection keys).
    static constexpr std::size_t kCopies = 64;
    std::size_t copies() const { return can_hide_ ? kCopies : 0; }
    std::byte* copy(std::size_t number) { return copies_ + number * 4096; }
    /// In place of what is there. `offset`: into the file, or the copies. Multiples of the page
    /// size, below kEnd.
    void map(std::uint64_t linear, std::uint64_t bytes, std::uint64_t offset, Rights rights);
    void unmap(std::uint64_t linear, std::uint64_t bytes);
    void unmap_all();
    /// False: not all could be done. What is mapped is not known then: unmap_all(), unless
    /// !alive().
    [[nodiscard]] bool flush();
    void end(); // of the process, for good
    bool alive() const { return pid_ != 0; }
    pid_t pid() const { return pid_; }
    /// CPUID can be Refused (Intel SDM Vol. 2A, CPUID faulting). It costs a virtual machine two
    /// writes of an MSR a visit, each of which its host may have to execute.
    bool can_refuse_cpuid() const { return can_refuse_cpuid_; }
    bool refuses_cpuid() const { return refuses_cpuid_; }
    bool refusing_is_free() const { return refusing_is_free_; }
    /// False: it can not. What is flush()ed along may not have been done.
    bool refuse_cpuid(bool yes);
    /// RDTSC and RDTSCP can be, too. It takes two writes of CR4 a visit, which AMD's hosts of
    /// virtual machines have to execute (10 µs a visit, as much as all else). Not at the beginning.
    bool refuses_tsc() const { return refuses_tsc_; }
    bool refuse_tsc(bool yes); // as refuse_cpuid()
    bool has_breakpoints() const { return has_breakpoints_; }
    /// Instructions at these linear addresses, 0 for none, are Refused from now on.
    static constexpr std::size_t kBreakpoints = 4;
    using Breakpoints = std::array<std::uint64_t, kBreakpoints>;
    [[nodiscard]] bool set_breakpoints(const Breakpoints& places);
    /// [own(), own() + StubCode::kBytes) is not the guest's.
    std::uint64_t own() const { return own_; }
    bool is_own(std::uint64_t linear) const { return linear - own_ < StubCode::kBytes; }

    struct Registers {
        std::array<std::uint64_t, 16> gpr{};
        std::uint64_t rip = 0, rflags = 0;
        std::uint64_t fs_base = 0, gs_base = 0;                       // below kEnd
        std::uint16_t cs = 0, ss = 0, ds = 0, es = 0, fs = 0, gs = 0; // selectors
    };
    /// Those that 64-bit processes of Linux have.
    static constexpr std::uint16_t kCs = 0x33, kSs = 0x2b;

    enum class Stop : std::uint8_t {
        NotRun,   // somebody asks for attention; registers and vectors are as they were
        Poked,    // likewise, but something was run
        Syscall,  // rip is behind it; rax, rcx and r11 as before it but for what SYSCALL does
        Memory,   // `address` cannot be accessed so
        Refused,  // the instruction at rip raised another exception
        Trapped,  // INT3 of one byte, or INT1, which is at rip unless it was replaced since
        Stepped,  // a single-step trap behind an instruction, as FLAG_TF is set
        Vsyscall, // a call of the page at 0xffffffffff600000: rip is there, rax is lost
        Dead,     // the process is no more; registers and vectors are as they were
        Lost,     // likewise, and were not to be had
    };
    struct Result {
        Stop stop = Stop::Poked;
        std::uint64_t address = 0;
    };
    /// Runs until something happens, not at all when `attention` is not `calm`.
    Result run(Registers& registers, XsaveArea& vectors,
               const std::atomic<std::uint64_t>& attention, std::uint64_t calm);
    /// Any thread, async-signal-safe: ends a run() soon. Whoever calls it has changed `attention`.
    void poke() noexcept;

    /// What it takes to run nothing.
    std::uint64_t round_trip_cycles() const { return round_trip_cycles_; }

private:
    StubProcess();
    base::Result<void> spawn(int ram);
    base::Result<void> begin();
    void confine();
    base::Result<void> try_out();
    bool measure_round_trip();
    bool refuse(bool& what, bool yes, std::uint64_t call, std::array<std::uint64_t, 6> arguments);
    bool try_to_hide();
    bool try_to_refuse_cpuid();
    std::array<Stop, 2> try_code(std::span<const std::uint8_t> code, std::uint64_t second);
    Result run_at(std::uint64_t place);
    void add(std::uint64_t number, std::array<std::uint64_t, 6> arguments);
    enum class Seen : std::uint8_t { Stopped, Exiting, Gone };
    Seen wait(int& status);
    bool sent_by_somebody();
    bool go(int request, std::uint64_t to);
    bool work_is_done();
    bool work_has_been_done();
    Result not_begun(Seen seen);
    Result classify(int status, Registers& registers);

    const std::uint64_t own_;
    const StubCode code_;
    base::UniqueFd shared_fd_;
    StubShared* shared_ = nullptr;
    bool has_breakpoints_ = false;
    Breakpoints breakpoints_{};
    base::UniqueFd copies_fd_;
    std::byte* copies_ = nullptr;
    bool can_hide_ = false;
    bool can_refuse_cpuid_ = false;
    bool refuses_cpuid_ = false;
    bool refusing_is_free_ = false;
    bool refuses_tsc_ = false;
    std::uint8_t int1_bytes_ = 1; // how far it is behind an INT1 that rip is
    base::UniqueFd handle_;       // of the process: whom to poke
    std::atomic<bool> running_{false};
    pid_t pid_ = 0;
    const pid_t tracer_;
    SameCpu same_cpu_;
    bool failed_ = false;
    std::uint64_t round_trip_cycles_ = 0;
    std::array<std::array<std::uint64_t, 2>, 2> round_trips_{}; // by what is refused; 0: not known
};

} // namespace doppel::cpu::x86::frontend
