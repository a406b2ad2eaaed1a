// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/stub_code.hpp"

#include <elf.h>

#include <cstring>

// Where the CPU has protection keys those come first: what the guest may have made of them would
// keep this code from its memory.
asm(R"(
    .pushsection .rodata.doppel_stub, "a"
    .balign 16
    .hidden doppel_stub_begin, doppel_stub_started, doppel_stub_work_keys, doppel_stub_work
    .hidden doppel_stub_worked, doppel_stub_enter_keys, doppel_stub_enter, doppel_stub_end
    .globl doppel_stub_begin, doppel_stub_started, doppel_stub_work_keys, doppel_stub_work
    .globl doppel_stub_worked, doppel_stub_enter_keys, doppel_stub_enter, doppel_stub_end
    .globl doppel_stub_int1
    .hidden doppel_stub_int1
    .set doppel_stub_shared, doppel_stub_begin + 0x1000
    .macro doppel_stub_own_keys
    movl $0x55555554, %eax                  /* key 0 is allowed all, others nothing */
    movl $0, %ecx                           /* flags are the guest's already */
    movl $0, %edx
    wrpkru
    .endm
doppel_stub_begin:
    movl $9, %eax                           /* mmap */
    leaq doppel_stub_shared(%rip), %rdi
    movl $0x4000, %esi
    movl $1, %edx                           /* PROT_READ */
    movl $0x11, %r10d                       /* MAP_SHARED | MAP_FIXED */
    movl $4, %r8d                           /* kSharedFd */
    xorl %r9d, %r9d
    syscall
    int3
doppel_stub_started:
doppel_stub_int1:
    .byte 0xf1
doppel_stub_work_keys:
    doppel_stub_own_keys
doppel_stub_work:
    leaq doppel_stub_shared + 0x1000(%rip), %rbx
    movq (%rbx), %r12
    addq $8, %rbx
    xorl %eax, %eax
1:  testq %r12, %r12
    je 2f
    movq (%rbx), %rax
    movq 8(%rbx), %rdi
    movq 16(%rbx), %rsi
    movq 24(%rbx), %rdx
    movq 32(%rbx), %r10
    movq 40(%rbx), %r8
    movq 48(%rbx), %r9
    syscall
    cmpq $-4095, %rax
    jae 2f
    addq $56, %rbx
    decq %r12
    jmp 1b
2:  int3
doppel_stub_worked:
doppel_stub_enter_keys:
    doppel_stub_own_keys
doppel_stub_enter:
    movl $0xe7, %eax                        /* all but protection keys; what the guest does not */
    movl $0, %edx                           /* have becomes as after reset */
    xrstor64 doppel_stub_shared(%rip)
    movq doppel_stub_shared + 832(%rip), %rax
    movq doppel_stub_shared + 840(%rip), %rcx
    movq doppel_stub_shared + 848(%rip), %rdx
    jmp *doppel_stub_shared + 856(%rip)
doppel_stub_end:
    .popsection
)");

extern "C" {
extern const std::byte doppel_stub_begin[], doppel_stub_started[], doppel_stub_int1[],
    doppel_stub_work_keys[], doppel_stub_work[], doppel_stub_worked[], doppel_stub_enter_keys[],
    doppel_stub_enter[], doppel_stub_end[];
}

namespace doppel::cpu::x86::frontend {

StubCode stub_code(bool keys) {
    const auto place = [](const std::byte* at) {
        return static_cast<std::uint64_t>(at - doppel_stub_begin);
    };
    return {.start = 0,
            .started = place(doppel_stub_started),
            .int1 = place(doppel_stub_int1),
            .work = place(keys ? doppel_stub_work_keys : doppel_stub_work),
            .worked = place(doppel_stub_worked),
            .enter = place(keys ? doppel_stub_enter_keys : doppel_stub_enter),
            .end = place(doppel_stub_end)};
}

std::vector<std::byte> stub_executable(std::uint64_t address) {
    const auto bytes = static_cast<std::size_t>(doppel_stub_end - doppel_stub_begin);
    Elf64_Ehdr header{};
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_ident[EI_VERSION] = EV_CURRENT;
    header.e_type = ET_EXEC;
    header.e_machine = EM_X86_64;
    header.e_version = EV_CURRENT;
    header.e_entry = address;
    header.e_phoff = sizeof header;
    header.e_ehsize = sizeof header;
    header.e_phentsize = sizeof(Elf64_Phdr);
    header.e_phnum = 2;
    std::array<Elf64_Phdr, 2> segments{};
    segments[0] = {.p_type = PT_LOAD,
                   .p_flags = PF_R | PF_X,
                   .p_offset = StubCode::kPageBytes,
                   .p_vaddr = address,
                   .p_paddr = address,
                   .p_filesz = bytes,
                   .p_memsz = bytes,
                   .p_align = StubCode::kPageBytes};
    segments[1].p_type = PT_GNU_STACK;
    segments[1].p_flags = PF_R | PF_W;
    std::vector<std::byte> file(StubCode::kPageBytes + bytes);
    std::memcpy(file.data(), &header, sizeof header);
    std::memcpy(file.data() + sizeof header, segments.data(), sizeof segments);
    std::memcpy(file.data() + StubCode::kPageBytes, doppel_stub_begin, bytes);
    return file;
}

} // namespace doppel::cpu::x86::frontend
