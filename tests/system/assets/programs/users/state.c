/* SPDX-License-Identifier: Apache-2.0 */
#include "users.h"

#include <asm/ldt.h>
#include <asm/prctl.h>
#include <immintrin.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EACH_VECTOR ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t"
#define ALL_FLAGS 0x244cd5 /* ID, NT, DF, OF, SF, ZF, AF, PF, CF */

static uint64_t flags_after(uint64_t set, uint64_t loops) {
    uint64_t flags = 0;
    __asm__ volatile("pushfq\n\tandq %2, (%%rsp)\n\torq %1, (%%rsp)\n\tpopfq\n"
                     "1: leaq -1(%%rcx), %%rcx\n\tjrcxz 2f\n\tjmp 1b\n"
                     "2: pushfq\n\tpopq %0\n\tpushq $0x202\n\tpopfq"
                     : "=&r"(flags), "+r"(set)
                     : "r"(~(uint64_t)ALL_FLAGS), "c"(loops)
                     : "cc", "memory");
    return flags & ALL_FLAGS;
}

static uint64_t over_a_call(uint64_t set) {
    uint64_t flags = 0, number = SYS_getpid;
    __asm__ volatile("pushfq\n\torq %2, (%%rsp)\n\tpopfq\n\tsyscall\n\tpushfq\n\tpopq %0\n\tcld"
                     : "=&r"(flags), "+a"(number)
                     : "r"(set)
                     : "rcx", "r11", "cc", "memory");
    return flags & ALL_FLAGS;
}

__attribute__((target("avx"))) static void vectors(void) {
    union {
        __m256 value[16];
        uint32_t word[128];
    } in, out;
    for (uint32_t i = 0; i < 128; ++i)
        in.word[i] = i * 0x9e3779b9u;
    for (int round = 0; round < 4; ++round) {
        uint64_t loops = 30000000, number = SYS_getpid;
        const uint32_t mxcsr = 0x9fc0;
        const uint16_t control = 0xc7f;
        uint32_t mxcsr_out = 0;
        uint16_t control_out = 0;
        double x87 = 1.5 + round, x87_out = 0;
        __asm__ volatile(
            "ldmxcsr %[m]\n\tfninit\n\tfldcw %[c]\n\tfldl %[x]\n\t" EACH_VECTOR
            "vmovups \\n*32(%[in]), %%ymm\\n\n\t.endr\n"
            "1: decq %[loops]\n\tjnz 1b\n\tsyscall\n\t" EACH_VECTOR
            "vmovups %%ymm\\n, \\n*32(%[out])\n\t.endr\n"
            "\tstmxcsr %[mo]\n\tfnstcw %[co]\n\tfstpl %[xo]\n\tfninit\n\tvzeroupper"
            : [mo] "=m"(mxcsr_out), [co] "=m"(control_out), [xo] "=m"(x87_out), [loops] "+r"(loops),
              "+a"(number), "=m"(out)
            : [in] "r"(&in), [out] "r"(&out), [m] "m"(mxcsr), [c] "m"(control), [x] "m"(x87),
              "m"(in)
            : "rcx", "r11", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
              "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "st");
        const uint32_t usual = 0x1f80;
        __asm__ volatile("ldmxcsr %0" : : "m"(usual));
        check("vectors", (uint64_t)memcmp(&in, &out, sizeof in), 0);
        check("mxcsr", mxcsr_out, mxcsr);
        check("control word", control_out, control);
        check("x87", x87_out == x87, 1);
    }
}

/* In 32-bit code: `loops` times INC EAX, which is a prefix in 64-bit code. */
static uint32_t in_32_bit_code(uint32_t loops) {
    uint8_t* page = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    const uint8_t code[] = {0x40, 0x49, 0x75, 0xfc, 0xcb}; /* inc eax; dec ecx; jnz; retf */
    memcpy(page, code, sizeof code);
    static struct { /* static: addressed without the stack */
        uint32_t offset;
        uint16_t selector;
    } __attribute__((packed)) to;
    static uint64_t stack, old;
    to.offset = (uint32_t)(uintptr_t)page;
    to.selector = 0x23;
    stack = (uint64_t)page + 8192 - 16;
    uint32_t result = 0, left = loops;
    __asm__ volatile("movq %%rsp, %3\n\tmovq %4, %%rsp\n\tlcall *%2\n\tmovq %3, %%rsp"
                     : "+a"(result), "+c"(left)
                     : "m"(to), "m"(old), "m"(stack)
                     : "rdx", "rbx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
                       "r15", "cc", "memory");
    munmap(page, 8192);
    return result;
}

void registers(void) {
    check("all flags", flags_after(ALL_FLAGS & ~0x4000ull, 10), ALL_FLAGS & ~0x4000ull);
    check("all flags, later", flags_after(ALL_FLAGS & ~0x4000ull, 3000000), ALL_FLAGS & ~0x4000ull);
    check("no flags", flags_after(0, 10), 0);
    check("no flags, later", flags_after(0, 3000000), 0);
    check("ID alone", flags_after(0x200000, 3000000), 0x200000);
    check("no flags again", flags_after(0, 3000000), 0);
    check("flags over a call", over_a_call(0xcd5) & 0x400, 0x400);
    vectors();
}

void segments(void) {
    static uint64_t there = 0x123456789abcdef0;
    uint64_t value = 0;
    syscall(SYS_arch_prctl, ARCH_SET_GS, &there);
    work(20);
    __asm__ volatile("movq %%gs:0, %0" : "=r"(value));
    check("gs base", value, there);
    if ((getauxval(AT_HWCAP2) & 2) != 0) {
        uint64_t other = 42, base = (uint64_t)&other;
        __asm__ volatile("wrgsbase %0" : : "r"(base) : "memory");
        work(20);
        __asm__ volatile("movq %%gs:0, %0" : "=r"(value) : : "memory");
        check("wrgsbase", value, 42);
    }
    uint32_t rights = 0, selector = 0;
    __asm__ volatile("movl $0x2b, %%eax\n\tmovl %%eax, %%ds\n\tmovl %%ds, %0"
                     : "=r"(selector)
                     :
                     : "eax");
    check("ds", selector, 0x2b);
    work(20);
    __asm__ volatile("movl %%ds, %0\n\txorl %%eax, %%eax\n\tmovl %%eax, %%ds"
                     : "=r"(selector)
                     :
                     : "eax");
    check("ds, later", selector, 0x2b);
    __asm__ volatile("movl %%cs, %0" : "=r"(selector));
    check("cs", selector, 0x33);
    __asm__ volatile("movl %%ss, %0" : "=r"(selector));
    check("ss", selector, 0x2b);
    __asm__ volatile("larl %1, %0" : "=r"(rights) : "r"(0x2b));
    check("lar", rights & 0xf0ff00, 0xc0f300);
    struct user_desc data = {.entry_number = 1,
                             .base_addr = 0,
                             .limit = 0xfffff,
                             .seg_32bit = 1,
                             .limit_in_pages = 1,
                             .useable = 1};
    uint32_t* low =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    data.base_addr = (uint32_t)(uintptr_t)low;
    low[1] = 77;
    if (syscall(SYS_modify_ldt, 1, &data, sizeof data) == 0) {
        uint32_t found = 0;
        __asm__ volatile("movl $0xf, %%eax\n\tmovl %%eax, %%gs\n\tmovl %%gs:4, %0"
                         : "=r"(found)
                         :
                         : "eax");
        check("a segment of the LDT", found, 77);
        work(20);
        __asm__ volatile("movl %%gs:4, %0\n\txorl %%eax, %%eax\n\tmovl %%eax, %%gs"
                         : "=r"(found)
                         :
                         : "eax");
        check("a segment of the LDT, later", found, 77);
    }
    check("32-bit code", in_32_bit_code(10), 10);
    check("32-bit code, for long", in_32_bit_code(3000000), 3000000);
}
