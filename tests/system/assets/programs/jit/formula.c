// SPDX-License-Identifier: Apache-2.0
/// Functions of random instructions.
#include "jit.h"

#include <string.h>

enum kind { kAdd, kXor, kMultiply, kRotate, kJumpOver, kBranch, kStack, kCall, kKinds };

static const uint8_t kReturn = 0xc3;

struct formula make_formula(uint64_t* random) {
    struct formula formula = {.count = 1 + (unsigned)(next_random(random) % kMaxSteps)};
    for (unsigned i = 0; i < formula.count; ++i) {
        formula.steps[i].kind = (uint8_t)(next_random(random) % kKinds);
        formula.steps[i].value = (uint32_t)next_random(random);
    }
    return formula;
}

static uint64_t signed32(uint32_t value) { return (uint64_t)(int64_t)(int32_t)value; }

uint64_t evaluate(const struct formula* formula, uint64_t x) {
    for (unsigned i = 0; i < formula->count; ++i) {
        const uint32_t value = formula->steps[i].value;
        switch (formula->steps[i].kind) {
        case kAdd: x += signed32(value); break;
        case kXor: x ^= signed32(value); break;
        case kMultiply: x *= signed32(value); break;
        case kRotate: x = x << (value & 63) | x >> (-value & 63); break;
        case kBranch: x = (x & 1) != 0 ? x + signed32(value) : x; break;
        case kStack:
        case kCall: x += signed32(value) + 1; break;
        default: break; // kJumpOver
        }
    }
    return x;
}

struct writer {
    uint8_t* at;
};

static void put(struct writer* to, const void* bytes, size_t count) {
    memcpy(to->at, bytes, count);
    to->at += count;
}

static void put_with_value(struct writer* to, const char* opcode, size_t count, uint32_t value) {
    put(to, opcode, count);
    put(to, &value, 4);
}

static void put_step(struct writer* to, enum kind kind, uint32_t value, uint64_t* random) {
    switch (kind) {
    case kAdd: put_with_value(to, "\x48\x05", 2, value); break;          // add rax, value
    case kXor: put_with_value(to, "\x48\x35", 2, value); break;          // xor rax, value
    case kMultiply: put_with_value(to, "\x48\x69\xc0", 3, value); break; // imul rax, rax, value
    case kRotate:
        put(to, "\x48\xc1\xc0", 3); // rol rax, value
        put(to, &value, 1);
        break;
    case kBranch: // test al, 1; jz +6; add rax, value
        put_with_value(to, "\xa8\x01\x74\x06\x48\x05", 6, value);
        break;
    case kStack: // push rax; add qword [rsp], value; pop rax; inc rax
        put_with_value(to, "\x50\x48\x81\x04\x24", 5, value);
        put(to, "\x58\x48\xff\xc0", 4);
        break;
    case kCall: // call over a function of its own: add rax, value; ret; then inc rax
        put(to, "\xe8\x02\x00\x00\x00\xeb\x07", 7);
        put_with_value(to, "\x48\x05", 2, value);
        put(to, &kReturn, 1);
        put(to, "\x48\xff\xc0", 3);
        break;
    default: { // jmp over bytes that are no code
        const uint8_t junk = (uint8_t)(next_random(random) % 8);
        put(to, (uint8_t[]){0xeb, junk}, 2);
        const uint64_t bytes = next_random(random);
        put(to, &bytes, junk);
    }
    }
}

size_t assemble(const struct formula* formula, uint8_t* code, uint64_t* random) {
    struct writer to = {code};
    put(&to, "\x48\x89\xf8", 3); // mov rax, rdi
    for (unsigned i = 0; i < formula->count; ++i)
        put_step(&to, formula->steps[i].kind, formula->steps[i].value, random);
    put(&to, &kReturn, 1);
    return (size_t)(to.at - code);
}

bool patch(struct formula* formula, uint8_t* code, uint64_t* random) {
    if (formula->steps[0].kind > kMultiply)
        return false;
    const uint32_t value = (uint32_t)next_random(random);
    formula->steps[0].value = value;
    memcpy(code + 3 + (formula->steps[0].kind == kMultiply ? 3 : 2), &value, 4);
    return true;
}
