/* SPDX-License-Identifier: Apache-2.0 */
#include "users.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static sigjmp_buf back;
static struct {
    int signal, code;
    uint64_t rip, trap, error, address, flags;
    unsigned steps;
} seen;

static void on_signal(int signal, siginfo_t* info, void* context) {
    __asm__ volatile("pushfq\n\tandl $~0x40000, (%%rsp)\n\tpopfq" : : : "cc", "memory"); /* AC */
    const greg_t* r = ((ucontext_t*)context)->uc_mcontext.gregs;
    seen.signal = signal;
    seen.code = info->si_code;
    seen.rip = (uint64_t)r[REG_RIP];
    seen.trap = (uint64_t)r[REG_TRAPNO];
    seen.error = (uint64_t)r[REG_ERR];
    seen.address = (uint64_t)r[REG_CR2];
    siglongjmp(back, 1);
}

static void catch_all(void (*handler)(int, siginfo_t*, void*)) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_NODEFER};
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; ++i)
        sigaction(signals[i], &action, NULL);
}

/* `code` is put on a page of its own and jumped to with rdi = `argument`; what it raises is
 * printed. */
static void raise_by(const char* name, const void* code, size_t bytes, uint64_t argument) {
    uint8_t* page =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(page, 0x90, 4096);
    memcpy(page + 64, code, bytes);
    page[64 + bytes] = 0xc3;
    for (int round = 0; round < 3; ++round) {
        memset(&seen, 0, sizeof seen);
        if (sigsetjmp(back, 1) == 0)
            ((void (*)(uint64_t))(uintptr_t)(page + 48))(argument);
        const uint64_t place = seen.rip - (uint64_t)page;
        printf("%s: signal %d code %d at %+lld trap %llu error %llu\n", name, seen.signal,
               seen.code, place < 4096 ? (long long)(place - 64) : 9999,
               (unsigned long long)seen.trap, (unsigned long long)seen.error);
        if (seen.trap == 14)
            check("  its address", (seen.address - argument) & ~2ull, 0);
    }
    munmap(page, 4096);
}
#define RAISE(name, argument, ...)                                                                 \
    do {                                                                                           \
        const uint8_t code[] = {__VA_ARGS__};                                                      \
        raise_by(name, code, sizeof code, (uint64_t)(argument));                                   \
    } while (0)

void exceptions(void) {
    uint8_t* data =
        mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(data + 4096, 4096, PROT_READ);
    mprotect(data + 8192, 4096, PROT_NONE);
    catch_all(on_signal);
    RAISE("nothing", 0, 0x90);
    RAISE("int3", 0, 0xcc);
    RAISE("int 3 of two bytes", 0, 0xcd, 3);
    RAISE("int 4", 0, 0xcd, 4);
    RAISE("int 0x20", 0, 0xcd, 0x20);
    RAISE("ud2", 0, 0x0f, 0x0b);
    RAISE("hlt", 0, 0xf4);
    RAISE("cli", 0, 0xfa);
    RAISE("in", 0, 0xec);
    RAISE("divide by zero", 0, 0x31, 0xc9, 0xf7, 0xf1);
    RAISE("divide overflow", 1, 0x89, 0xfa, 0xb9, 1, 0, 0, 0, 0xf7, 0xf1);
    RAISE("read of nothing", data + 8192, 0x8b, 0x07);
    RAISE("write to nothing", data + 8192, 0x89, 0x07);
    RAISE("write to what may be read", data + 4096, 0x89, 0x07);
    RAISE("write across", data + 4094, 0x89, 0x47, 2 - 2);
    RAISE("read at 0", 0, 0x8b, 0x07);
    RAISE("read of the kernel", 0xffff888000000000, 0x8b, 0x07);
    RAISE("not canonical", 0x800000000000, 0x8b, 0x07);
    RAISE("jump to data", data, 0xff, 0xe7);
    RAISE("jump to nothing", data + 8192, 0xff, 0xe7);
    RAISE("jump to 0", 0, 0xff, 0xe7);
    RAISE("jump to the kernel", 0xffff888000000000, 0xff, 0xe7);
    RAISE("a bad selector", 0x50, 0x8e, 0xdf);
    RAISE("movaps at an odd address", data + 1, 0x0f, 0x28, 0x07);
    /* pushf; or dword [rsp],0x40000; popf; mov eax,[rdi] */
    RAISE("alignment check", data + 1, 0x9c, 0x81, 0x0c, 0x24, 0, 0, 4, 0, 0x9d, 0x8b, 0x07);
    /* fninit; push 0x340; fldcw [rsp]; fld1; fldz; fdivp; fwait; pop rax */
    RAISE("x87 zero divide", 0, 0xdb, 0xe3, 0x68, 0x40, 3, 0, 0, 0xd9, 0x2c, 0x24, 0xd9, 0xe8, 0xd9,
          0xee, 0xde, 0xf9, 0x9b, 0x58);
    /* push 0; ldmxcsr [rsp]; xorps xmm0,xmm0; divss xmm0,xmm0; pop rax */
    RAISE("SSE invalid", 0, 0x6a, 0, 0x0f, 0xae, 0x14, 0x24, 0x0f, 0x57, 0xc0, 0xf3, 0x0f, 0x5e,
          0xc0, 0x58);
    const uint32_t mxcsr = 0x1f80;
    __asm__ volatile("fninit\n\tldmxcsr %0" : : "m"(mxcsr));
    uint64_t pid = 0;
    __asm__ volatile("syscall" : "=a"(pid) : "0"(SYS_getpid) : "rcx", "r11", "memory");
    check("syscall", pid, (uint64_t)getpid());
    time_t (*const old_time)(time_t*) = (time_t (*)(time_t*))0xffffffffff600400;
    if (sigsetjmp(back, 1) == 0 && (uint64_t)(old_time(NULL) - time(NULL) + 1) >= 3)
        puts("another time by the vsyscall page"); /* which not every kernel has */
    munmap(data, 3 * 4096);
}

static void on_step(int signal, siginfo_t* info, void* context) {
    greg_t* r = ((ucontext_t*)context)->uc_mcontext.gregs;
    (void)signal;
    seen.code = info->si_code;
    seen.steps++;
    seen.rip = seen.rip * 31 + (uint64_t)r[REG_RIP] - seen.address;
    if ((uint64_t)r[REG_RIP] == seen.flags)
        r[REG_EFL] &= ~0x100;
}

void single_steps(void) {
    struct sigaction action = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &action, NULL);
    for (int round = 0; round < 3; ++round) {
        memset(&seen, 0, sizeof seen);
        uint64_t first = 0, last = 0;
        __asm__ volatile("leaq 1f(%%rip), %0\n\tleaq 3f(%%rip), %1" : "=r"(first), "=r"(last));
        seen.address = first;
        seen.flags = last;
        __asm__ volatile("pushfq\n\torl $0x100, (%%rsp)\n\tpopfq\n"
                         "1: nop\n\tmovl $3, %%ecx\n2: decl %%ecx\n\tjnz 2b\n\txorl %%eax, %%eax\n"
                         "\tcpuid\n3: nop\n"
                         :
                         :
                         : "rax", "rbx", "rcx", "rdx", "cc", "memory");
        printf("single steps: %u, code %d, places %llu\n", seen.steps, seen.code,
               (unsigned long long)seen.rip);
    }
    catch_all(on_signal);
}
