// SPDX-License-Identifier: Apache-2.0
// Small guest programs of the register and soft-TLB spike. Compiled to assembly, then rewritten.
#include <stddef.h>
#include <stdint.h>

// ---- call and return
__attribute__((noinline)) static uint64_t fib(uint64_t n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
uint64_t wl_fib(uint64_t n) { return fib(n); }

// ---- an interpreter's switch loop
extern uint8_t bytecode[];
uint64_t wl_interp(uint64_t rounds) {
    uint64_t reg[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    uint64_t acc = 0;
    for (uint64_t r = 0; r < rounds; r++) {
        const uint8_t* pc = bytecode;
        for (;;) {
            unsigned op = *pc++, a = *pc++ & 7, b = *pc++ & 7;
            switch (op) {
            case 0: reg[a] += reg[b]; continue;
            case 1: reg[a] -= reg[b]; continue;
            case 2: reg[a] ^= reg[b]; continue;
            case 3: reg[a] = reg[b] * 3; continue;
            case 4: reg[a] = reg[b] >> 1; continue;
            case 5: reg[a] = (reg[b] << 7) | (reg[b] >> 57); continue;
            case 6: if (reg[a] > reg[b]) pc += 3; continue;
            case 7: acc += reg[a]; continue;
            case 8: reg[a]++; continue;
            case 9: reg[a] |= reg[b] & 0xff; continue;
            case 10: reg[a] = acc; continue;
            default: break;
            }
            break;
        }
    }
    return acc + reg[0];
}

// ---- pointer chase; the ring is made natively, one node per cache line or per page
struct node { struct node* next; uint64_t pad[7]; };
extern struct node* chase_head[];
uint64_t wl_chase(uint64_t which_and_count) {
    struct node* p = chase_head[which_and_count >> 32];
    for (uint32_t n = (uint32_t)which_and_count; n; n -= 4) p = p->next->next->next->next;
    return (uint64_t)(p == chase_head[which_and_count >> 32]);
}

// ---- streaming
extern uint64_t stream_area[];
uint64_t wl_sum(uint64_t words) {
    uint64_t s = 0;
    for (uint64_t i = 0; i < words; i++) { s += stream_area[i]; __asm__("" : "+r"(s)); }
    return s;
}

// ---- sorting with a callback
typedef int (*compare)(const uint32_t*, const uint32_t*);
static int ascending(const uint32_t* a, const uint32_t* b) { return *a < *b ? -1 : *a > *b; }
compare volatile sort_compare = ascending;
static void quicksort(uint32_t* v, long n, compare cmp) {
    while (n > 8) {
        uint32_t pivot = v[n / 2];
        long i = 0, j = n - 1;
        while (i <= j) {
            while (cmp(&v[i], &pivot) < 0) i++;
            while (cmp(&v[j], &pivot) > 0) j--;
            if (i <= j) { uint32_t t = v[i]; v[i++] = v[j]; v[j--] = t; }
        }
        quicksort(v + i, n - i, cmp);
        n = j + 1;
    }
    for (long i = 1; i < n; i++) {
        uint32_t t = v[i];
        long j = i;
        for (; j > 0 && cmp(&v[j - 1], &t) > 0; j--) v[j] = v[j - 1];
        v[j] = t;
    }
}
extern uint32_t sort_area[];
uint64_t wl_sort(uint64_t n) {
    uint64_t x = 88172645463325252ULL;
    for (uint64_t i = 0; i < n; i++) { x ^= x << 13; x ^= x >> 7; x ^= x << 17; sort_area[i] = (uint32_t)x; }
    quicksort(sort_area, (long)n, sort_compare);
    return sort_area[0] ^ sort_area[n / 2] ^ sort_area[n - 1];
}

// ---- SHA-256 (register heavy, spills to the stack)
static const uint32_t K[64] = {
    0x428a2f98,0x71374491,0xb5c0fbcf,0xe9b5dba5,0x3956c25b,0x59f111f1,0x923f82a4,0xab1c5ed5,0xd807aa98,0x12835b01,0x243185be,0x550c7dc3,0x72be5d74,0x80deb1fe,0x9bdc06a7,0xc19bf174,
    0xe49b69c1,0xefbe4786,0x0fc19dc6,0x240ca1cc,0x2de92c6f,0x4a7484aa,0x5cb0a9dc,0x76f988da,0x983e5152,0xa831c66d,0xb00327c8,0xbf597fc7,0xc6e00bf3,0xd5a79147,0x06ca6351,0x14292967,
    0x27b70a85,0x2e1b2138,0x4d2c6dfc,0x53380d13,0x650a7354,0x766a0abb,0x81c2c92e,0x92722c85,0xa2bfe8a1,0xa81a664b,0xc24b8b70,0xc76c51a3,0xd192e819,0xd6990624,0xf40e3585,0x106aa070,
    0x19a4c116,0x1e376c08,0x2748774c,0x34b0bcb5,0x391c0cb3,0x4ed8aa4a,0x5b9cca4f,0x682e6ff3,0x748f82ee,0x78a5636f,0x84c87814,0x8cc70208,0x90befffa,0xa4506ceb,0xbef9a3f7,0xc67178f2};
#define ROR(x, n) ((x) >> (n) | (x) << (32 - (n)))
static void sha_block(uint32_t* h, const uint32_t* p) {
    uint32_t w[64], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], k = h[7];
    for (int i = 0; i < 16; i++) w[i] = __builtin_bswap32(p[i]);
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] + (ROR(w[i - 15], 7) ^ ROR(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (ROR(w[i - 2], 17) ^ ROR(w[i - 2], 19) ^ w[i - 2] >> 10);
    for (int i = 0; i < 64; i++) {
        uint32_t t = k + (ROR(e, 6) ^ ROR(e, 11) ^ ROR(e, 25)) + ((e & f) ^ (~e & g)) + K[i] + w[i];
        uint32_t u = (ROR(a, 2) ^ ROR(a, 13) ^ ROR(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        k = g; g = f; f = e; e = d + t; d = c; c = b; b = a; a = t + u;
    }
    h[0] += a; h[1] += b; h[2] += c; h[3] += d; h[4] += e; h[5] += f; h[6] += g; h[7] += k;
}
uint64_t wl_sha(uint64_t bytes) {
    uint32_t h[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    for (uint64_t i = 0; i < bytes / 4; i += 16) sha_block(h, (const uint32_t*)stream_area + i);
    return h[0];
}

// ---- what a kernel path looks like: short functions with many saved registers, chains of structures,
// tables of operations, reference counts, lists, small hash lookups
struct inode { struct inode* hash_next; uint64_t number; struct file_ops* ops; uint32_t count, mode; uint64_t size; };
struct file { struct inode* node; struct file_ops* ops; uint64_t position; uint32_t count, flags; };
struct file_ops { long (*read)(struct file*, char*, long); long (*write)(struct file*, const char*, long); };
struct task { struct file* files[64]; struct task* next; uint64_t pending, runtime; };
static struct inode inodes[256];
static struct inode* buckets[64];
static struct file files[64];
static struct task tasks[16];
static char kernel_page[4096];
__attribute__((noinline)) static struct inode* inode_find(uint64_t number) {
    for (struct inode* i = buckets[(number * 0x9e3779b97f4a7c15ULL) >> 58]; i; i = i->hash_next)
        if (i->number == number) { i->count++; return i; }
    return NULL;
}
__attribute__((noinline)) static void inode_put(struct inode* i) { i->count--; }
__attribute__((noinline)) static long copy_out(char* to, const char* from, long n) {
    for (long i = 0; i + 8 <= n; i += 8) *(uint64_t*)(to + i) = *(const uint64_t*)(from + i);
    return n;
}
__attribute__((noinline)) static long permitted(struct task* t, struct inode* i, uint32_t want) {
    if (t->pending & 1) return -4;
    return (i->mode & want) == want ? 0 : -13;
}
__attribute__((noinline)) static long page_read(struct file* f, char* to, long n) {
    struct inode* i = inode_find(f->node->number);
    long at = (long)(f->position & 2047), done;
    if (!i) return -2;
    done = copy_out(to, kernel_page + at, n);
    f->position += (uint64_t)done;
    inode_put(i);
    return done;
}
__attribute__((noinline)) static long page_write(struct file* f, const char* from, long n) {
    struct inode* i = inode_find(f->node->number);
    if (!i) return -2;
    copy_out(kernel_page + (f->position & 2047), from, n);
    i->size += (uint64_t)n;
    inode_put(i);
    return n;
}
static struct file_ops page_ops = {page_read, page_write};
__attribute__((noinline)) static struct file* file_get(struct task* t, unsigned fd) {
    struct file* f = fd < 64 ? t->files[fd] : NULL;
    if (f) f->count++;
    return f;
}
__attribute__((noinline)) static void file_put(struct file* f) { f->count--; }
__attribute__((noinline)) static long sys_read(struct task* t, unsigned fd, char* to, long n) {
    struct file* f = file_get(t, fd);
    long r;
    if (!f) return -9;
    r = permitted(t, f->node, 4);
    if (r == 0) r = f->ops->read(f, to, n);
    file_put(f);
    return r;
}
__attribute__((noinline)) static long sys_write(struct task* t, unsigned fd, const char* from, long n) {
    struct file* f = file_get(t, fd);
    long r;
    if (!f) return -9;
    r = permitted(t, f->node, 2);
    if (r == 0) r = f->ops->write(f, from, n);
    file_put(f);
    return r;
}
__attribute__((noinline)) static struct task* pick_next(struct task* head) {
    struct task *best = head, *t;
    for (t = head->next; t != head; t = t->next) if (t->runtime < best->runtime) best = t;
    return best;
}
uint64_t wl_kernel(uint64_t rounds) {
    char user[64] = {0};
    long total = 0;
    for (unsigned i = 0; i < 64; i++) buckets[i] = NULL;
    for (unsigned i = 0; i < 256; i++) {
        struct inode** b = &buckets[(i * 0x9e3779b97f4a7c15ULL) >> 58];
        inodes[i] = (struct inode){*b, i, &page_ops, 1, 6, 0};
        *b = &inodes[i];
    }
    for (unsigned i = 0; i < 64; i++) files[i] = (struct file){&inodes[i * 3], &page_ops, 0, 1, 0};
    for (unsigned i = 0; i < 16; i++) {
        for (unsigned j = 0; j < 64; j++) tasks[i].files[j] = &files[(i + j) & 63];
        tasks[i].next = &tasks[(i + 1) & 15]; tasks[i].pending = 0; tasks[i].runtime = i;
    }
    struct task* current = tasks;
    for (uint64_t r = 0; r < rounds; r++) {
        total += sys_write(current, (unsigned)(r * 7) & 63, user, 32);
        total += sys_read(current, (unsigned)(r * 5) & 63, user, 32);
        current->runtime += 17;
        if ((r & 3) == 3) current = pick_next(current);
    }
    return (uint64_t)total;
}

// ---- two processes that wake each other: every change of privilege, AC and CR3 changes the view.
// (view_N is nothing natively; the rewriter replaces the call by the change of TLB instance.)
void view_0(void), view_1(void), view_2(void), view_3(void), view_4(void), view_5(void);
__attribute__((noinline)) static long pipe_copy(struct task* t, char* user, long n, int process, int writing) {
    long done;
    if (process) view_5(); else view_4();           // STAC
    done = writing ? sys_write(t, 3, user, n) : sys_read(t, 3, user, n);
    if (process) view_3(); else view_2();           // CLAC
    return done;
}
uint64_t wl_pipe(uint64_t rounds) {
    char user[64] = {0};
    long total = 0;
    if (!tasks[0].next) wl_kernel(1);
    for (uint64_t r = 0; r < rounds; r++)
        for (int process = 0; process < 2; process++) {
            if (process) view_3(); else view_2();   // SYSCALL write
            total += pipe_copy(&tasks[process], user, 32, process, 1);
            if (process) view_1(); else view_0();   // SYSRET
            user[0]++;
            if (process) view_3(); else view_2();   // SYSCALL read: blocks
            total += pipe_copy(&tasks[process], user, 32, process, 0);
            tasks[process].runtime += 17;
            pick_next(tasks);
            if (process) view_2(); else view_3();   // MOV CR3: the other process
            user[1]++;
            if (process) view_0(); else view_1();   // SYSRET in the other process
        }
    return (uint64_t)total;
}

// ---- scalar floating point
struct body { double x, y, z, vx, vy, vz, mass; };
uint64_t wl_nbody(uint64_t steps) {
    struct body b[5];
    for (int i = 0; i < 5; i++) b[i] = (struct body){i, i * 1.5, 2 - i, .1 * i, .2, .3 - .1 * i, 1 + i};
    __asm__ volatile("" : : "r"(b) : "memory");
    for (uint64_t s = 0; s < steps; s++) {
        for (int i = 0; i < 5; i++)
            for (int j = i + 1; j < 5; j++) {
                double dx = b[i].x - b[j].x, dy = b[i].y - b[j].y, dz = b[i].z - b[j].z;
                double d = dx * dx + dy * dy + dz * dz + .01, m = .001 / (d * d);
                b[i].vx -= dx * b[j].mass * m; b[i].vy -= dy * b[j].mass * m; b[i].vz -= dz * b[j].mass * m;
                b[j].vx += dx * b[i].mass * m; b[j].vy += dy * b[i].mass * m; b[j].vz += dz * b[i].mass * m;
            }
        for (int i = 0; i < 5; i++) { b[i].x += .001 * b[i].vx; b[i].y += .001 * b[i].vy; b[i].z += .001 * b[i].vz; }
        __asm__ volatile("" : : "r"(b) : "memory");
    }
    return (uint64_t)(b[0].x * 1e6);
}
