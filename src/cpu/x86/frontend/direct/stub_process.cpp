// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/stub_process.hpp"

#include <cpuid.h>
#include <elf.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
#include <x86intrin.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "base/log.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

constexpr int kSysemu = 31; // PTRACE_SYSEMU, which glibc has for other architectures only
constexpr int kSyscallStop = SIGTRAP | 0x80; // PTRACE_O_TRACESYSGOOD
constexpr unsigned kMemfdExec = 0x10;        // MFD_EXEC of Linux 6.3
constexpr unsigned kSetCpuid = 0x1012;       // ARCH_SET_CPUID
constexpr std::uint64_t kNeverBack = ~std::uint64_t{0};
constexpr std::uint64_t kPlaceToTry = 0x10000;
constexpr std::uint64_t kNoCall = ~std::uint64_t{0};
constexpr int kExitStop = SIGTRAP | PTRACE_EVENT_EXIT << 8;

bool has_protection_keys() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (c >> 4 & 1) != 0; // OSPKE
}

long trace(int request, pid_t pid, std::uint64_t address, const void* data) {
    return ::syscall(SYS_ptrace, request, pid, address, data);
}

std::uint64_t random_place() {
    std::uint64_t value = 0;
    if (::getrandom(&value, sizeof value, 0) != sizeof value)
        value = 0;
    constexpr std::uint64_t kFrom = 0x1000'0000'0000, kRoom = 0x4000'0000'0000;
    return kFrom + (value % kRoom & ~std::uint64_t{0xfff});
}

base::UniqueFd memory_file(const char* name, unsigned flags) {
    base::UniqueFd file{::memfd_create(name, MFD_CLOEXEC | flags)};
    if (!file && errno == EINVAL)
        file.reset(::memfd_create(name, MFD_CLOEXEC));
    return file;
}

void* map_file(int file, std::size_t bytes) {
    void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    return at == MAP_FAILED ? nullptr : at;
}

/// Out of the way of the numbers that the stub's own have.
base::UniqueFd high_copy(int fd) { return base::UniqueFd{::fcntl(fd, F_DUPFD_CLOEXEC, 64)}; }

/// In the child of a vfork: its memory is the parent's.
[[noreturn]] void become_stub(int program, int ram, int shared, int copies) {
    static char name[] = "doppel-user";
    static char* arguments[] = {name, nullptr};
    static char* environment[] = {nullptr};
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    // Its indirect branches tell nobody where to go, nor does anybody tell them, if the host can.
    ::prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_FORCE_DISABLE, 0, 0);
    if (::dup2(ram, StubCode::kRamFd) >= 0 && ::dup2(shared, StubCode::kSharedFd) >= 0 &&
        ::dup2(copies, StubCode::kCopiesFd) >= 0 && ::syscall(SYS_close_range, 0u, 2u, 0u) == 0 &&
        ::syscall(SYS_close_range, static_cast<unsigned>(StubCode::kCopiesFd + 1),
                  static_cast<unsigned>(program - 1), 0u) == 0 &&
        ::syscall(SYS_close_range, static_cast<unsigned>(program + 1), ~0u, 0u) == 0 &&
        trace(PTRACE_TRACEME, 0, 0, nullptr) == 0)
        ::syscall(SYS_execveat, program, "", arguments, environment, AT_EMPTY_PATH);
    ::_exit(127);
}

constexpr sock_filter load_word(std::uint32_t offset) {
    return {BPF_LD | BPF_W | BPF_ABS, 0, 0, offset};
}
constexpr sock_filter skip_unless(std::uint32_t value, std::uint8_t skipped) {
    return {BPF_JMP | BPF_JEQ | BPF_K, 0, skipped, value};
}
constexpr sock_filter end_with(std::uint32_t action) { return {BPF_RET | BPF_K, 0, 0, action}; }

/// The calls of the vsyscall page do not stop a traced process: the filter makes them signals.
constexpr std::array kFilter{
    load_word(offsetof(seccomp_data, arch)),
    skip_unless(AUDIT_ARCH_X86_64, 13),
    load_word(offsetof(seccomp_data, nr)),
    skip_unless(SYS_mmap, 1),
    end_with(SECCOMP_RET_ALLOW),
    skip_unless(SYS_munmap, 1),
    end_with(SECCOMP_RET_ALLOW),
    skip_unless(SYS_arch_prctl, 3),
    load_word(offsetof(seccomp_data, args)),
    skip_unless(kSetCpuid, 1),
    end_with(SECCOMP_RET_ALLOW),
    skip_unless(SYS_prctl, 3),
    load_word(offsetof(seccomp_data, args)),
    skip_unless(PR_SET_TSC, 1),
    end_with(SECCOMP_RET_ALLOW),
    end_with(SECCOMP_RET_TRAP),
};

} // namespace

StubProcess::StubProcess()
    : own_{random_place()}, code_{stub_code(has_protection_keys())}, tracer_{::gettid()} {}

base::Result<std::unique_ptr<StubProcess>> StubProcess::create(int ram) {
    auto stub = std::unique_ptr<StubProcess>{new StubProcess};
    DOPPEL_TRY(stub->spawn(ram));
    const auto begun = stub->begin(); // which has tried it out
    SameCpu::let_go();
    DOPPEL_TRY(begun);
    return stub;
}

StubProcess::~StubProcess() {
    end();
    if (shared_ != nullptr)
        ::munmap(shared_, kStubSharedBytes);
    if (copies_ != nullptr)
        ::munmap(copies_, kCopies * 4096);
}

void StubProcess::end() {
    const pid_t pid = std::exchange(pid_, 0);
    if (pid == 0)
        return;
    ::kill(pid, SIGKILL);
    trace(PTRACE_CONT, pid, 0, nullptr); // it may stand on its way out, or come to stand there
    int status = 0;
    while (::waitpid(pid, &status, __WALL) >= 0 ? WIFSTOPPED(status) : errno == EINTR)
        trace(PTRACE_CONT, pid, 0, nullptr);
}

base::Result<void> StubProcess::spawn(int ram) {
    auto program = memory_file("doppel-user", kMemfdExec);
    shared_fd_ = memory_file("doppel-user-shared", 0);
    copies_fd_ = memory_file("doppel-user-copies", kMemfdExec);
    const auto bytes = stub_executable(own_);
    if (!program || !shared_fd_ || !copies_fd_ ||
        ::write(program.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()) ||
        ::ftruncate(shared_fd_.get(), kStubSharedBytes) != 0 ||
        ::ftruncate(copies_fd_.get(), kCopies * 4096) != 0)
        return base::fail_errno(errno, "cannot make memory for a process of guest users");
    void* const shared = map_file(shared_fd_.get(), kStubSharedBytes);
    void* const copies = map_file(copies_fd_.get(), kCopies * 4096);
    if (shared == nullptr || copies == nullptr)
        return base::fail_errno(errno, "cannot map the memory of a process of guest users");
    shared_ = new (shared) StubShared;
    copies_ = static_cast<std::byte*>(copies);
    const auto high_program = high_copy(program.get()), high_ram = high_copy(ram),
               high_shared = high_copy(shared_fd_.get()), high_copies = high_copy(copies_fd_.get());
    if (!high_program || !high_ram || !high_shared || !high_copies)
        return base::fail_errno(errno, "cannot pass memory to a process of guest users");
    program.reset();
    sigset_t all, before;
    sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    const pid_t child = ::vfork();
    if (child == 0)
        become_stub(high_program.get(), high_ram.get(), high_shared.get(), high_copies.get());
    const int error = errno;
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (child < 0)
        return base::fail_errno(error, "cannot start a process for guest users");
    pid_ = child;
    handle_.reset(static_cast<int>(::syscall(SYS_pidfd_open, child, 0u)));
    if (!handle_)
        return base::fail_errno(errno, "cannot reach a process for guest users");
    return {};
}

/// From its first stop, behind the call that made it a program of its own.
base::Result<void> StubProcess::begin() {
    int status = 0;
    const std::uint64_t no_signals = 0;
    if (wait(status) != Seen::Stopped || WSTOPSIG(status) != SIGTRAP ||
        trace(PTRACE_SETOPTIONS, pid_, 0,
              reinterpret_cast<const void*>(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL |
                                            PTRACE_O_TRACEEXIT)) != 0 ||
        trace(PTRACE_SETSIGMASK, pid_, sizeof no_signals, &no_signals) != 0 ||
        !go(PTRACE_CONT, code_.start) || wait(status) != Seen::Stopped ||
        WSTOPSIG(status) != SIGTRAP)
        return base::fail(base::Errc::Unsupported, "this host lets no process be traced");
    confine();
    if (!flush())
        return base::fail(base::Errc::Unsupported, "a process for guest users cannot be confined");
    return try_out();
}

base::Result<void> StubProcess::try_out() {
    if (!measure_round_trip())
        return base::fail(base::Errc::Unsupported, "a process for guest users does not run");
    // The first time takes milliseconds, which are better spent here.
    has_breakpoints_ = set_breakpoints({own_, own_, own_, own_}) && set_breakpoints({});
    // INT1: hosts differ in where it ends.
    int1_bytes_ = 0;
    int1_bytes_ = static_cast<std::uint8_t>(run_at(own_ + code_.int1).address - own_ - code_.int1);
    can_hide_ = try_to_hide();
    can_refuse_cpuid_ = try_to_refuse_cpuid();
    return {};
}

/// False: it does not come back.
bool StubProcess::measure_round_trip() {
    std::uint64_t& known = round_trips_.at(refuses_cpuid_ ? 1 : 0).at(refuses_tsc_ ? 1 : 0);
    std::uint64_t least = known == 0 ? kNeverBack : known;
    for (int i = 0; i < 6 && known == 0; ++i) {
        const std::uint64_t from = __rdtsc();
        if (run_at(own_ + code_.worked - 1).stop == Stop::Trapped) // not poked, that is
            least = std::min<std::uint64_t>(least, __rdtsc() - from);
    }
    round_trip_cycles_ = known = least;
    return least != kNeverBack;
}

/// How it stops when it runs from the beginning, and from `second` on.
std::array<StubProcess::Stop, 2> StubProcess::try_code(std::span<const std::uint8_t> code,
                                                       std::uint64_t second) {
    std::memcpy(copies_, code.data(), code.size());
    map(kPlaceToTry, 4096, 0, Rights::Execute);
    if (!flush())
        return {Stop::Lost, Stop::Lost};
    const std::array stops{run_at(kPlaceToTry).stop, run_at(kPlaceToTry + second).stop};
    unmap(kPlaceToTry, 4096);
    return flush() ? stops : std::array{Stop::Lost, Stop::Lost};
}

/// By code that reads itself: mov eax,[rip-6]; int3.
bool StubProcess::try_to_hide() {
    return try_code(std::array<std::uint8_t, 7>{0x8b, 0x05, 0xfa, 0xff, 0xff, 0xff, 0xcc}, 6) ==
           std::array{Stop::Memory, Stop::Trapped};
}

/// Where it costs nothing it stays so. CPUID; int3.
bool StubProcess::try_to_refuse_cpuid() {
    constexpr std::uint64_t kNothing = 4000; // cycles
    const std::uint64_t without = round_trip_cycles_;
    const bool can = refuse_cpuid(true) && try_code(std::array<std::uint8_t, 3>{0x0f, 0xa2, 0xcc},
                                                    2) == std::array{Stop::Refused, Stop::Trapped};
    refusing_is_free_ = can && round_trip_cycles_ < without + kNothing;
    if (refusing_is_free_)
        return true;
    if (refuses_cpuid_ && !refuse_cpuid(false))
        end();
    unmap_all();
    return flush() && can;
}

bool StubProcess::refuse_cpuid(bool yes) {
    return refuse(refuses_cpuid_, yes, SYS_arch_prctl, {kSetCpuid, yes ? 0u : 1u});
}

bool StubProcess::refuse_tsc(bool yes) {
    const unsigned how = yes ? PR_TSC_SIGSEGV : PR_TSC_ENABLE;
    return refuse(refuses_tsc_, yes, SYS_prctl, {PR_SET_TSC, how});
}

bool StubProcess::refuse(bool& what, bool yes, std::uint64_t call,
                         std::array<std::uint64_t, 6> arguments) {
    add(call, arguments);
    if (!flush())
        return false;
    what = yes;
    return measure_round_trip();
}

/// With nothing in the registers. Of the result `address` is where it has come to, unless that of
/// memory.
StubProcess::Result StubProcess::run_at(std::uint64_t place) {
    Registers nothing;
    nothing.rip = place;
    nothing.rflags = FLAG_IF | 2;
    nothing.cs = kCs;
    nothing.ss = kSs;
    XsaveArea vectors{};
    const std::uint32_t mxcsr = 0x1f80;
    std::memcpy(vectors.bytes.data() + 24, &mxcsr, sizeof mxcsr);
    const std::atomic<std::uint64_t> attention{0};
    Result result = run(nothing, vectors, attention, 0);
    if (result.stop != Stop::Memory)
        result.address = nothing.rip;
    return result;
}

/// Drops all it was born with, and every right.
void StubProcess::confine() {
    auto* const program = reinterpret_cast<sock_fprog*>(shared_->scratch.data());
    auto* const filter = reinterpret_cast<sock_filter*>(program + 1);
    static_assert(sizeof(sock_fprog) + sizeof kFilter <= sizeof shared_->scratch);
    std::memcpy(filter, kFilter.data(), sizeof kFilter);
    const std::uint64_t there = own_ + StubCode::kPageBytes + offsetof(StubShared, scratch);
    program->len = kFilter.size();
    program->filter = reinterpret_cast<sock_filter*>(there + sizeof *program);
    unmap_all();
    add(SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1});
    add(SYS_close, {StubCode::kSharedFd});
    add(SYS_seccomp, {SECCOMP_SET_MODE_FILTER, 0, there});
}

void StubProcess::add(std::uint64_t number, std::array<std::uint64_t, 6> arguments) {
    if (shared_->count == StubShared::kCalls && !flush())
        failed_ = true;
    shared_->calls.at(shared_->count++) = {number, arguments};
}

void StubProcess::map(std::uint64_t linear, std::uint64_t bytes, std::uint64_t offset,
                      Rights rights) {
    const std::uint64_t protection = rights == Rights::Read        ? PROT_READ
                                     : rights == Rights::ReadWrite ? PROT_READ | PROT_WRITE
                                     : rights == Rights::Execute   ? PROT_EXEC
                                                                   : PROT_READ | PROT_EXEC;
    const std::uint64_t file = rights == Rights::Execute ? StubCode::kCopiesFd : StubCode::kRamFd;
    if (shared_->count != 0) {
        auto& [number, last] = shared_->calls.at(shared_->count - 1);
        if (number == SYS_mmap && last[0] + last[1] == linear && last[5] + last[1] == offset &&
            last[2] == protection) {
            last[1] += bytes;
            return;
        }
    }
    add(SYS_mmap, {linear, bytes, protection, MAP_SHARED | MAP_FIXED, file, offset});
}

void StubProcess::unmap(std::uint64_t linear, std::uint64_t bytes) {
    add(SYS_munmap, {linear, bytes});
}

bool StubProcess::set_breakpoints(const Breakpoints& places) {
    constexpr std::uint64_t kAnyExecution = 0x55; // DR7: all four enabled, for instructions
    const auto set = [this](std::size_t number, std::uint64_t value) {
        const std::uint64_t place = offsetof(user, u_debugreg) + number * 8;
        return trace(PTRACE_POKEUSER, pid_, place, reinterpret_cast<const void*>(value)) == 0;
    };
    for (std::size_t i = 0; i < kBreakpoints; ++i)
        if (places.at(i) != breakpoints_.at(i))
            if (pid_ == 0 || !set(i, places.at(i) != 0 ? places.at(i) : own_))
                return false;
    const bool any = places != Breakpoints{}, had_any = breakpoints_ != Breakpoints{};
    breakpoints_ = places;
    return any == had_any || set(7, any ? kAnyExecution : 0);
}

void StubProcess::unmap_all() {
    shared_->count = 0;
    failed_ = false;
    add(SYS_munmap, {0, own_});
    add(SYS_munmap, {own_ + StubCode::kBytes, kEnd - own_ - StubCode::kBytes});
}

bool StubProcess::flush() {
    if (shared_->count == 0)
        return !failed_ && alive();
    if (!work_is_done())
        failed_ = true;
    std::fill_n(shared_->calls.begin(), shared_->count, StubShared::Call{}); // nobody's business
    shared_->count = 0;
    return !failed_;
}

bool StubProcess::work_is_done() {
    if (pid_ == 0 || tracer_ != ::gettid())
        return false;
    same_cpu_.before(pid_);
    const bool done = work_has_been_done();
    same_cpu_.after(pid_);
    return done;
}

bool StubProcess::work_has_been_done() {
    if (!go(PTRACE_CONT, code_.work))
        return false;
    int status = 0;
    while (wait(status) == Seen::Stopped && WSTOPSIG(status) != SIGTRAP) {
        if (!sent_by_somebody()) { // an exception: of no use any more
            end();
            return false;
        }
        trace(PTRACE_CONT, pid_, 0, nullptr); // a poke that came late
    }
    std::uint64_t left = 1;
    return alive() && trace(PTRACE_PEEKUSER, pid_, offsetof(user_regs_struct, r12), &left) == 0 &&
           left == 0;
}

StubProcess::Seen StubProcess::wait(int& status) {
    while (::waitpid(pid_, &status, __WALL) < 0) {
        if (errno == EINTR)
            continue;
        pid_ = 0;
        return Seen::Gone;
    }
    if (WIFSTOPPED(status))
        return status >> 8 == kExitStop ? Seen::Exiting : Seen::Stopped;
    pid_ = 0;
    return Seen::Gone;
}

/// The signal for which it has stopped: no exception, nor a trap.
bool StubProcess::sent_by_somebody() {
    siginfo_t info{};
    return trace(PTRACE_GETSIGINFO, pid_, 0, &info) == 0 && info.si_code <= 0;
}

/// To a place of its own page.
bool StubProcess::go(int request, std::uint64_t to) {
    user_regs_struct at{};
    at.rip = own_ + to;
    at.cs = kCs;
    at.ss = kSs;
    at.eflags = FLAG_IF | 2;
    at.orig_rax = kNoCall;
    return trace(PTRACE_SETREGS, pid_, 0, &at) == 0 && trace(request, pid_, 0, nullptr) == 0;
}

namespace {

user_regs_struct pack(const StubProcess::Registers& from) {
    const auto& gpr = from.gpr;
    user_regs_struct to{};
    to.rcx = gpr[Rcx];
    to.rbx = gpr[Rbx];
    to.rsp = gpr[Rsp];
    to.rbp = gpr[Rbp];
    to.rsi = gpr[Rsi];
    to.rdi = gpr[Rdi];
    to.r8 = gpr[R8];
    to.r9 = gpr[R9];
    to.r10 = gpr[R10];
    to.r11 = gpr[R11];
    to.r12 = gpr[R12];
    to.r13 = gpr[R13];
    to.r14 = gpr[R14];
    to.r15 = gpr[R15];
    to.eflags = from.rflags;
    to.fs_base = from.fs_base;
    to.gs_base = from.gs_base;
    to.cs = from.cs;
    to.ss = from.ss;
    to.ds = from.ds;
    to.es = from.es;
    to.fs = from.fs;
    to.gs = from.gs;
    to.orig_rax = kNoCall; // or the kernel would take rax for a call that it may have to repeat
    return to;
}

void unpack(const user_regs_struct& from, StubProcess::Registers& to) {
    to.gpr = {from.rax, from.rcx, from.rdx, from.rbx, from.rsp, from.rbp, from.rsi, from.rdi,
              from.r8,  from.r9,  from.r10, from.r11, from.r12, from.r13, from.r14, from.r15};
    to.rip = from.rip;
    to.rflags = from.eflags;
    to.fs_base = from.fs_base;
    to.gs_base = from.gs_base;
    to.cs = static_cast<std::uint16_t>(from.cs);
    to.ss = static_cast<std::uint16_t>(from.ss);
    to.ds = static_cast<std::uint16_t>(from.ds);
    to.es = static_cast<std::uint16_t>(from.es);
    to.fs = static_cast<std::uint16_t>(from.fs);
    to.gs = static_cast<std::uint16_t>(from.gs);
}

/// From the standard format in which the kernel tells them; the 48 bytes that are software's stay.
bool read_vectors(pid_t pid, XsaveArea& to) {
    constexpr std::size_t kSoftware = 464, kHeader = 512, kExtended = 576;
    alignas(64) std::array<std::byte, XsaveArea::kBytes> area; // others are not asked for
    iovec place{area.data(), area.size()};
    if (trace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, &place) != 0 ||
        place.iov_len < XsaveArea::kBytes)
        return false;
    std::uint64_t parts = 0;
    std::memcpy(&parts, area.data() + kHeader, sizeof parts);
    parts &= 7;
    std::memcpy(area.data() + kHeader, &parts, sizeof parts);
    std::memcpy(to.bytes.data(), area.data(), kSoftware);
    std::memcpy(to.bytes.data() + kHeader, area.data() + kHeader, kExtended - kHeader);
    std::memcpy(to.bytes.data() + kExtended, area.data() + kExtended,
                XsaveArea::kBytes - kExtended);
    return true;
}

} // namespace

StubProcess::Result StubProcess::run(Registers& registers, XsaveArea& vectors,
                                     const std::atomic<std::uint64_t>& attention,
                                     std::uint64_t calm) {
    shared_->vectors = vectors;
    shared_->rax = registers.gpr[Rax];
    shared_->rcx = registers.gpr[Rcx];
    shared_->rdx = registers.gpr[Rdx];
    shared_->rip = registers.rip;
    user_regs_struct at = pack(registers);
    at.rip = own_ + code_.enter;
    if (pid_ == 0 || tracer_ != ::gettid() || trace(PTRACE_SETREGS, pid_, 0, &at) != 0)
        return {.stop = Stop::Dead};
    running_.store(true);
    if (attention.load() != calm) {
        running_.store(false);
        return {.stop = Stop::NotRun};
    }
    int status = 0;
    same_cpu_.before(pid_);
    const Seen seen = trace(kSysemu, pid_, 0, nullptr) == 0 ? wait(status) : Seen::Gone;
    same_cpu_.after(pid_);
    running_.store(false);
    if (seen == Seen::Gone || trace(PTRACE_GETREGS, pid_, 0, &at) != 0)
        return {.stop = Stop::Lost};
    const std::uint64_t place = at.rip - own_;
    const bool trapped = seen == Seen::Stopped && WSTOPSIG(status) == SIGTRAP;
    if (place >= code_.enter && place < code_.end && !trapped)
        return not_begun(seen);
    if (!read_vectors(pid_, vectors))
        return {.stop = Stop::Lost};
    unpack(at, registers);
    if (seen == Seen::Exiting) { // killed; what it has done is known
        end();
        return {.stop = Stop::Poked};
    }
    if (WSTOPSIG(status) == kSyscallStop) {
        registers.gpr[Rax] = at.orig_rax;
        return {.stop = Stop::Syscall};
    }
    return classify(status, registers);
}

/// Stopped while it loaded what it was given: by a signal, or because that cannot be loaded.
StubProcess::Result StubProcess::not_begun(Seen seen) {
    if (seen == Seen::Exiting) {
        end();
        return {.stop = Stop::Dead};
    }
    return {.stop = sent_by_somebody() ? Stop::NotRun : Stop::Refused};
}

StubProcess::Result StubProcess::classify(int status, Registers& registers) {
    siginfo_t info{};
    if (trace(PTRACE_GETSIGINFO, pid_, 0, &info) != 0 || info.si_code <= 0)
        return {.stop = Stop::Poked}; // sent by somebody
    switch (WSTOPSIG(status)) {
    case SIGSEGV:
        if (info.si_code == SEGV_MAPERR || info.si_code == SEGV_ACCERR ||
            info.si_code == SEGV_PKUERR)
            return {Stop::Memory, reinterpret_cast<std::uint64_t>(info.si_addr)};
        return {.stop = Stop::Refused};
    case SIGBUS:
    case SIGILL:
    case SIGFPE: return {.stop = Stop::Refused};
    case SIGTRAP:
        if (info.si_code == TRAP_HWBKPT)
            return {.stop = Stop::Refused};
        if (info.si_code == TRAP_TRACE)
            return {.stop = Stop::Stepped};
        registers.rip -= info.si_code == TRAP_BRKPT ? int1_bytes_ : 1;
        return {.stop = Stop::Trapped};
    case SIGSYS: // the kernel has done the RET
        registers.rip = reinterpret_cast<std::uint64_t>(info.si_call_addr);
        registers.gpr[Rsp] -= 8;
        return {.stop = Stop::Vsyscall};
    default: return {.stop = Stop::Poked};
    }
}

void StubProcess::poke() noexcept {
    if (running_.load())
        ::syscall(SYS_pidfd_send_signal, handle_.get(), SIGUSR1, nullptr, 0u);
}

} // namespace doppel::cpu::x86::frontend
