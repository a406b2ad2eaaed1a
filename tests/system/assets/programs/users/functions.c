/* SPDX-License-Identifier: Apache-2.0 */
/* A page with more of what only the guest's processor knows than a process has breakpoints, beside
 * a loop that computes. Whoever comes to it, and by whatever way, is told the same. */
#include "users.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

enum { kPage = 4096, kAnswers = 6 };

/* What `ask` is given, in rdi. */
struct question {
    uint32_t answer[kAnswers][4]; /* eax, ebx, ecx, edx of leaves 0x80000002 + n % 3 */
    void (*halfway)(void);        /* called between two of them, unless it is null */
    const volatile uint8_t* read; /* likewise, read from */
};

/* rdi: the question. rbx and r12 are kept by `ask`, which begins behind the loop. */
__asm__(".pushsection .text\n"
        ".p2align 12\n"
        "functions_page:\n"
        "1:\tdec %edi\n"
        "\tjnz 1b\n"
        "\tret\n"
        "\t.p2align 4\n"
        "functions_long:\n" /* a tenth of a second */
        "\tmov $300000000, %edi\n"
        "\tjmp 1b\n"
        "\t.p2align 4\n"
        "functions_ask:\n"
        "\tpush %rbx\n"
        "\tpush %r12\n"
        "\tsub $8, %rsp\n"
        "\tmov %rdi, %r12\n"
        ".macro one leaf, place\n"
        "\tmov $0x80000002 + \\leaf, %eax\n"
        "\txor %ecx, %ecx\n"
        "\tcpuid\n"
        "\tmov %eax, \\place(%r12)\n"
        "\tmov %ebx, \\place + 4(%r12)\n"
        "\tmov %ecx, \\place + 8(%r12)\n"
        "\tmov %edx, \\place + 12(%r12)\n"
        ".endm\n"
        "\tone 0, 0\n"
        "\tone 1, 16\n"
        "\tone 2, 32\n"
        "\tmov 96(%r12), %rax\n"
        "\ttest %rax, %rax\n"
        "\tjz 2f\n"
        "\tcall *%rax\n"
        "2:\tmov 104(%r12), %rax\n"
        "\tmov (%rax), %al\n"
        "functions_middle:\n"
        "\tone 0, 48\n"
        "\tone 1, 64\n"
        "\tone 2, 80\n"
        "\tadd $8, %rsp\n"
        "\tpop %r12\n"
        "\tpop %rbx\n"
        "\tret\n"
        "\t.p2align 4\n"
        "functions_vectors:\n" /* edi: turns; eax: whether xmm0 to xmm3 have changed in one */
        "\tmov %rsp, %rcx\n"
        ".irp n, 0, 1, 2, 3\n"
        "\tmovq %rcx, %xmm\\n\n"
        ".endr\n"
        "3:\txor %eax, %eax\n"
        ".irp n, 0, 1, 2, 3\n"
        "\tmovq %xmm\\n, %rdx\n"
        "\txor %rcx, %rdx\n"
        "\tor %rdx, %rax\n"
        ".endr\n"
        "\tjnz 4f\n"
        "\tdec %edi\n"
        "\tjnz 3b\n"
        "4:\tret\n"
        "\t.p2align 4\n"
        "functions_value:\n"
        "\tmov $0, %eax\n" /* which is written anew */
        "\tret\n"
        "\t.p2align 12\n"
        ".popsection\n");
extern const uint8_t functions_page[], functions_long[], functions_ask[], functions_middle[],
    functions_vectors[], functions_value[];

static uint32_t wanted[3][4];
static void (*loop)(uint32_t);
static void (*long_loop)(void);
static const uint8_t* middle;
static uint8_t* unreadable;
static volatile int handled;

/* A page of its own for each test, as what was done on one is known of it. */
static void (*new_page(void))(struct question*) {
    uint8_t* const pages =
        mmap(NULL, 3 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t* const page = pages + kPage;
    memset(pages, 0x90, 3 * kPage);
    memcpy(page, functions_page, kPage);
    mprotect(pages, 3 * kPage, PROT_READ | PROT_EXEC);
    loop = (void (*)(uint32_t))(uintptr_t)page;
    long_loop = (void (*)(void))(uintptr_t)(page + (functions_long - functions_page));
    middle = page + (functions_middle - functions_page);
    return (void (*)(struct question*))(uintptr_t)(page + (functions_ask - functions_page));
}

static uint64_t is_wrong(const struct question* question, int first) {
    uint64_t wrong = 0;
    for (int i = first; i < kAnswers; ++i)
        wrong += memcmp(question->answer[i], wanted[i % 3], sizeof wanted[0]) != 0;
    return wrong;
}

static void compute(void) { loop(20000000); }

static void make_readable(int number, siginfo_t* info, void* context) {
    (void)number, (void)info, (void)context;
    compute();
    mprotect(unreadable, kPage, PROT_READ);
    handled++;
}
static void go_to_middle(int number, siginfo_t* info, void* context) {
    (void)number, (void)info;
    ucontext_t* const at = context;
    compute();
    at->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)middle;
    handled++;
}
static void on_fault(void (*handler)(int, siginfo_t*, void*)) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
}

/* Goes on in the midst of `ask` as if it had come from its beginning, from a fault elsewhere. */
static void ask_from_middle(struct question* question) {
    __asm__ volatile("mov %0, %%rdi\n"
                     "\tlea 1f(%%rip), %%rax\n"
                     "\tsub $128, %%rsp\n"
                     "\tpush %%rax\n" /* as `ask` was called, … */
                     "\tpush %%rbx\n"
                     "\tpush %%r12\n"
                     "\tsub $8, %%rsp\n"
                     "\tmov %%rdi, %%r12\n"
                     "\tmovb (%1), %%al\n" /* … until here */
                     "1:\tadd $128, %%rsp\n"
                     :
                     : "r"(question), "r"(unreadable)
                     : "rax", "rcx", "rdx", "rdi", "r12", "memory", "cc");
}

static void learn(void) {
    for (uint32_t i = 0; i < 3; ++i) {
        uint32_t* const to = wanted[i];
        __asm__ volatile("cpuid"
                         : "=a"(to[0]), "=b"(to[1]), "=c"(to[2]), "=d"(to[3])
                         : "a"(0x80000002u + i), "c"(0));
    }
}

void functions(void) {
    static const uint8_t readable;
    learn();
    struct question question = {.read = &readable};
    void (*ask)(struct question*) = new_page();
    uint64_t wrong = 0;
    for (int i = 0; i < 200; ++i) {
        loop(100000);
        memset(question.answer, 0, sizeof question.answer);
        ask(&question);
        wrong += is_wrong(&question, 0);
    }
    check("six cpuids beside a loop", wrong, 0);
    /* Where such a page is translated, amid code that is not. */
    uint64_t (*const vectors)(uint32_t) =
        (uint64_t (*)(uint32_t))((uintptr_t)ask + (uintptr_t)(functions_vectors - functions_ask));
    for (int i = 0; i < 10; ++i) {
        work(4);
        wrong += vectors(10000000) != 0;
    }
    check("vectors in the same page", wrong, 0);
    ask = new_page();
    question.halfway = compute;
    memset(question.answer, 0, sizeof question.answer);
    ask(&question);
    check("and a long call between them", is_wrong(&question, 0), 0);
    /* A new program is none that computes, until it is in the midst of them. */
    ask = new_page();
    question.halfway = long_loop;
    question.read = (const volatile uint8_t*)&question; /* which is known by then */
    const pid_t child = fork();
    if (child == 0) {
        memset(question.answer, 0, sizeof question.answer);
        ask(&question);
        _exit(is_wrong(&question, 0) != 0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    check("and a longer one, which began before it computed", (uint64_t)status, 0);
    ask = new_page();
    question.halfway = NULL;
    unreadable = mmap(NULL, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    question.read = unreadable;
    on_fault(make_readable);
    memset(question.answer, 0, sizeof question.answer);
    ask(&question);
    check("and a fault that is handled", is_wrong(&question, 0) + (handled != 1), 0);
    new_page();
    mprotect(unreadable, kPage, PROT_NONE);
    on_fault(go_to_middle);
    memset(question.answer, 0, sizeof question.answer);
    compute();
    ask_from_middle(&question);
    check("a signal's way into the midst of them", is_wrong(&question, 3) + (handled != 2), 0);
    signal(SIGSEGV, SIG_DFL);
}

struct page {
    void (*ask)(struct question*);
    void (*loop)(uint32_t);
    uint32_t (*value)(void);
    uint8_t* code;
};

static struct page make_page(void) {
    struct page page = {.ask = new_page()};
    page.loop = loop;
    page.code = (uint8_t*)(uintptr_t)loop;
    page.value = (uint32_t (*)(void))(uintptr_t)(page.code + (functions_value - functions_page));
    return page;
}
static void set_value(const struct page* page, uint32_t value) {
    mprotect(page->code, kPage, PROT_READ | PROT_WRITE);
    memcpy(page->code + (functions_value - functions_page) + 1, &value, sizeof value);
    mprotect(page->code, kPage, PROT_READ | PROT_EXEC);
}

/* Two of them, of which the first ends with the beginning of an instruction: mov $0x12345678, %eax;
 * ret. */
static uint32_t (*make_crossing(void))(void) {
    static const uint8_t crossing[] = {0xb8, 0x78, 0x56, 0x34, 0x12, 0xc3};
    uint8_t* const code =
        mmap(NULL, 4 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(code, 0x90, 4 * kPage);
    memcpy(code + kPage, functions_page, kPage);
    memcpy(code + 2 * kPage, functions_page, kPage);
    memcpy(code + 2 * kPage - 2, crossing, sizeof crossing);
    mprotect(code, 4 * kPage, PROT_READ | PROT_EXEC);
    return (uint32_t (*)(void))(uintptr_t)(code + 2 * kPage - 2);
}

/* More such pages, in turn, than a process has breakpoints for. What becomes of memory and code is
 * the same whoever looks. */
void many_functions(void) {
    enum { kPages = 7, kRounds = 6000, kData = 8 };
    static const uint8_t readable;
    struct question question = {.read = &readable};
    struct page pages[kPages];
    uint32_t values[kPages] = {0}, sums[kData] = {0};
    for (int i = 0; i < kPages; ++i)
        pages[i] = make_page();
    uint32_t (*const crossing)(void) = make_crossing();
    uint8_t* const data =
        mmap(NULL, kData * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t wrong_answers = 0, wrong_values = 0, wrong_sums = 0;
    for (uint32_t round = 0; round < kRounds; ++round) {
        const struct page* const page = &pages[round % kPages];
        volatile uint32_t* const sum = (volatile uint32_t*)(data + round % kData * kPage);
        page->loop(5000);
        wrong_values += page->value() != values[round % kPages];
        wrong_values += round % 5 == 0 && crossing() != 0x12345678;
        wrong_sums += *sum != sums[round % kData];
        *sum = sums[round % kData] += round;
        if (round % 97 == 0) {
            memset(question.answer, 0, sizeof question.answer);
            page->ask(&question);
            wrong_answers += is_wrong(&question, 0);
        }
        if (round % 101 == 0)
            set_value(page, values[round % kPages] = round);
        if (round % 103 == 0) { /* another page, which is zero */
            mmap((void*)(uintptr_t)sum, kPage, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            sums[round % kData] = 0;
        }
        if (round % 107 == 0 && fork() == 0) /* copied on write from now on */
            _exit((int)(*sum = round) & 1);
        while (waitpid(-1, NULL, WNOHANG) > 0) {
        }
    }
    check("seven such pages in turn", wrong_answers, 0);
    check("their code, which changes", wrong_values, 0);
    check("their memory, which moves", wrong_sums, 0);
}
