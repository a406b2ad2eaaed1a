// SPDX-License-Identifier: Apache-2.0
// Compiled without stack protector: in the child FS is the cases', so nothing there may use
// thread-local storage, errno included.
#include "tests/oracle/host_cpu.hpp"

#include <asm/ldt.h>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "tests/oracle/xsave_image.hpp"

namespace doppel::oracle {

struct HostCpu::Arena {
    volatile std::uint64_t count = 0; // cases in this batch
    volatile std::uint64_t current = 0;
    std::array<Case, kBatch> cases;
    std::array<Outcome, kBatch> outcomes;
    std::array<MemoryImage, kBatch> memories;
};

namespace {

constexpr std::size_t kStackBytes = std::size_t{128} * 1024;
constexpr std::uint64_t kCs64 = 0x33, kCs32 = 0x23;
constexpr std::uint16_t kFlatData = 0x2b;
constexpr unsigned long kStrictRestoreSs = 4; // UC_STRICT_RESTORE_SS
constexpr int kTimeoutMs = 4000;

/// What the handler needs; one child per process, so plain globals.
HostCpu::Arena* arena;
const MemoryImage* images;
std::byte* code;   // writable view of area::kCode
std::byte* memory; // writable view of data, read-only page and stack
int go_fd, done_fd;
bool started;

long system_call(long number, long a, long b, long c) {
    long result;
    asm volatile("syscall"
                 : "=a"(result)
                 : "a"(number), "D"(a), "S"(b), "d"(c)
                 : "rcx", "r11", "memory");
    return result;
}

/// Waits until the parent has put in a batch; tells it first that the last one is done.
void next_batch() {
    char byte = 1;
    if (started)
        system_call(SYS_write, done_fd, reinterpret_cast<long>(&byte), 1);
    started = true;
    if (system_call(SYS_read, go_fd, reinterpret_cast<long>(&byte), 1) != 1)
        system_call(SYS_exit_group, 0, 0, 0);
}

constexpr std::array kRegisters = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                   REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                   REG_R12, REG_R13, REG_R14, REG_R15};

void note_outcome(const ucontext_t& context) {
    const auto& registers = context.uc_mcontext.gregs;
    Outcome& outcome = arena->outcomes[arena->current];
    outcome.vector = static_cast<std::uint8_t>(registers[REG_TRAPNO]);
    outcome.error_code = static_cast<std::uint32_t>(registers[REG_ERR]);
    outcome.cr2 = static_cast<std::uint64_t>(registers[REG_CR2]);
    outcome.rip = static_cast<std::uint64_t>(registers[REG_RIP]);
    outcome.rflags = static_cast<std::uint64_t>(registers[REG_EFL]);
    for (std::size_t i = 0; i < kRegisters.size(); ++i)
        outcome.gpr[i] = static_cast<std::uint64_t>(registers[kRegisters[i]]);
    outcome.vectors = get_vectors(reinterpret_cast<const std::byte*>(context.uc_mcontext.fpregs));
    std::memcpy(arena->memories[arena->current].data(), memory, area::kImageBytes);
}

[[gnu::always_inline]] inline void set_bases() {
    const std::uint64_t fs = area::kFsBase, gs = area::kGsBase;
    asm volatile("wrgsbase %0\n\twrfsbase %1" : : "r"(gs), "r"(fs) : "memory");
}

/// The kernel restores CS and SS from the frame and leaves the others as they are here. A null
/// selector in FS or GS takes the base away.
void load_selectors(ucontext_t& context, Mode mode) {
    const bool is16 = mode == Mode::Bits16;
    const std::uint64_t cs = is16 ? ldt::kCode : mode == Mode::Bits64 ? kCs64 : kCs32;
    const std::uint64_t ss = is16 ? ldt::kStack : kFlatData;
    const std::uint16_t data = is16 ? ldt::kData : kFlatData;
    auto& selectors = context.uc_mcontext.gregs[REG_CSGSFS];
    const auto fs_gs = static_cast<std::uint64_t>(selectors) & 0x0000'ffff'ffff'0000;
    selectors = static_cast<greg_t>(fs_gs | cs | ss << 48);
    context.uc_flags |= kStrictRestoreSs;
    asm volatile("mov %0, %%ds\n\tmov %0, %%es" : : "r"(data));
    if (mode == Mode::Bits32) {
        asm volatile("mov %0, %%fs\n\tmov %1, %%gs" : : "r"(ldt::kFs), "r"(ldt::kGs));
        return;
    }
    asm volatile("mov %0, %%fs\n\tmov %0, %%gs" : : "r"(std::uint16_t{0}));
    set_bases();
}

void load_case(ucontext_t& context, const Case& next) {
    auto& registers = context.uc_mcontext.gregs;
    std::memset(code, 0xcc, area::kCodePages * area::kPage);
    std::memcpy(code + next.code_offset, next.code.data(), code_bytes(next));
    std::memcpy(memory, images[next.memory].data(), area::kImageBytes);
    for (std::size_t i = 0; i < next.poke_at.size(); ++i)
        if (next.poke_at[i] != 0)
            std::memcpy(memory + image_offset(next.poke_at[i]), &next.poke[i], 8);
    for (std::size_t i = 0; i < kRegisters.size(); ++i)
        registers[kRegisters[i]] = static_cast<greg_t>(next.gpr[i]);
    registers[REG_RIP] = static_cast<greg_t>(initial_rip(next));
    registers[REG_EFL] = static_cast<greg_t>(next.rflags);
    load_selectors(context, next.mode);
    put_vectors(reinterpret_cast<std::byte*>(context.uc_mcontext.fpregs), next.vectors);
}

/// A case may have set AC; the kernel leaves it to us.
[[gnu::always_inline]] inline void allow_unaligned() {
    asm volatile("pushfq\n\tandq $~0x40000, (%%rsp)\n\tpopfq" ::: "memory", "cc");
}

void on_signal(int, siginfo_t*, void* raw) {
    allow_unaligned();
    auto& context = *static_cast<ucontext_t*>(raw);
    if (started) {
        note_outcome(context);
        arena->current = arena->current + 1;
    }
    if (!started || arena->current == arena->count)
        next_batch();
    load_case(context, arena->cases[arena->current]);
}

bool map_at(std::uint64_t linear, std::size_t bytes, int protection, int fd, off_t offset) {
    void* wanted = reinterpret_cast<void*>(linear);
    return mmap(wanted, bytes, protection, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, offset) == wanted;
}

/// One file holds code, then the memory image; the handler writes through a second view.
bool map_areas() {
    const int fd = memfd_create("oracle", MFD_CLOEXEC);
    constexpr std::size_t kCodeBytes = area::kCodePages * area::kPage;
    constexpr std::size_t kBytes = kCodeBytes + area::kImageBytes;
    if (fd < 0 || ftruncate(fd, kBytes) != 0)
        return false;
    void* view = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (view == MAP_FAILED)
        return false;
    code = static_cast<std::byte*>(view);
    memory = code + kCodeBytes;
    constexpr off_t kImage = kCodeBytes;
    return map_at(area::kCode, kCodeBytes, PROT_READ | PROT_EXEC, fd, 0) &&
           map_at(area::kData, 2 * area::kPage, PROT_READ | PROT_WRITE, fd, kImage) &&
           map_at(area::kReadOnly, area::kPage, PROT_READ, fd, kImage + 2 * area::kPage) &&
           map_at(area::kStack, area::kPage, PROT_READ | PROT_WRITE, fd, kImage + 3 * area::kPage);
}

/// So that no case meets a page that the kernel has yet to map: its error code would differ.
void touch_areas() {
    for (const std::uint64_t page : {area::kCode, area::kCode + area::kPage, area::kReadOnly})
        static_cast<void>(*reinterpret_cast<volatile std::uint8_t*>(page));
    for (const std::uint64_t page : {area::kData, area::kData + area::kPage, area::kStack})
        *reinterpret_cast<volatile std::uint8_t*>(page) = 0;
}

bool add_segment(std::uint16_t selector, std::uint64_t base, std::uint64_t bytes,
                 bool code_segment) {
    user_desc segment{};
    segment.entry_number = selector >> 3;
    segment.base_addr = static_cast<unsigned>(base);
    segment.limit_in_pages = bytes > 0x10'0000;
    segment.limit =
        static_cast<unsigned>((bytes - 1) >> (segment.limit_in_pages != 0 ? 12 : 0)) & 0xfffff;
    segment.contents = code_segment ? 2 : 0;
    segment.useable = 1;
    return syscall(SYS_modify_ldt, 1, &segment, sizeof segment) == 0;
}

bool make_ldt() {
    return add_segment(ldt::kCode, area::kCode, area::kCodePages * area::kPage, true) &&
           add_segment(ldt::kData, area::kData, 2 * area::kPage, false) &&
           add_segment(ldt::kStack, area::kStack, area::kPage, false) &&
           add_segment(ldt::kFs, area::kFsBase, std::uint64_t{1} << 32, false) &&
           add_segment(ldt::kGs, area::kGsBase, area::kGsBytes, false);
}

[[noreturn]] void child_main() {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!map_areas() || !make_ldt())
        _exit(1);
    touch_areas();
    stack_t stack{};
    stack.ss_size = kStackBytes;
    stack.ss_sp =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaltstack(&stack, nullptr);
    struct sigaction action{};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP})
        sigaction(signal, &action, nullptr);
    set_bases();
    asm volatile("int3" : : : "memory");
    __builtin_unreachable();
}

} // namespace

base::Result<std::unique_ptr<HostCpu>> HostCpu::create(std::span<const MemoryImage> initial) {
    std::unique_ptr<HostCpu> host{new HostCpu};
    host->arena_bytes_ = sizeof(Arena) + initial.size_bytes();
    void* shared = mmap(nullptr, host->arena_bytes_, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return base::fail_errno(errno, "map memory to share with the oracle's process");
    host->arena_ = new (shared) Arena;
    auto* copies = reinterpret_cast<MemoryImage*>(static_cast<std::byte*>(shared) + sizeof(Arena));
    std::memcpy(copies, initial.data(), initial.size_bytes());
    arena = host->arena_;
    images = copies;
    DOPPEL_TRY_VOID(host->start_child());
    return host;
}

HostCpu::~HostCpu() {
    end_child();
    if (arena_ != nullptr)
        munmap(arena_, arena_bytes_);
}

base::Result<void> HostCpu::start_child() {
    if (pipe2(go_, O_CLOEXEC) != 0 || pipe2(done_, O_CLOEXEC) != 0)
        return base::fail_errno(errno, "make pipes to the oracle's process");
    child_ = fork();
    if (child_ < 0)
        return base::fail_errno(errno, "fork the oracle's process");
    if (child_ == 0) {
        go_fd = go_[0];
        done_fd = done_[1];
        close(go_[1]);
        close(done_[0]);
        child_main();
    }
    close(go_[0]);
    close(done_[1]);
    go_[0] = done_[1] = -1;
    return {};
}

void HostCpu::end_child() {
    if (child_ > 0) {
        kill(child_, SIGKILL);
        waitpid(child_, nullptr, 0);
    }
    child_ = -1;
    for (int* pipe : {go_, done_})
        for (int i = 0; i < 2; ++i) {
            if (pipe[i] >= 0)
                close(pipe[i]);
            pipe[i] = -1;
        }
}

bool HostCpu::wait_for_child() {
    pollfd wait{.fd = done_[0], .events = POLLIN, .revents = 0};
    char byte;
    return poll(&wait, 1, kTimeoutMs) == 1 && read(done_[0], &byte, 1) == 1;
}

base::Result<HostCpu::Answers> HostCpu::run(std::span<const Case> cases) {
    std::memcpy(arena_->cases.data(), cases.data(), cases.size_bytes());
    arena_->count = cases.size();
    arena_->current = 0;
    while (arena_->current < cases.size()) {
        const char byte = 1;
        if (write(go_[1], &byte, 1) == 1 && wait_for_child())
            break;
        // That case hung, or killed the process: go on behind it in a new one.
        arena_->outcomes[arena_->current] = Outcome{.vector = kHung};
        arena_->current = arena_->current + 1;
        end_child();
        DOPPEL_TRY_VOID(start_child());
    }
    return Answers{arena_->outcomes.data(), arena_->memories.data()};
}

} // namespace doppel::oracle
