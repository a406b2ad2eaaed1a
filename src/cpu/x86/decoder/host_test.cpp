// SPDX-License-Identifier: Apache-2.0
/// The host CPU as judge: a traced child executes single instructions, and whether the CPU raises
/// #UD and how far RIP moves is compared with the decoder's answer. Every opcode with every ModRM
/// byte, in 64- and 32-bit code. Nothing is assumed about what an instruction does: the tracer sets
/// all registers before each step, memory is one small shared area, and system calls find no valid
/// number in eax.
#include <doctest/doctest.h>

#include <Zydis/Zydis.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "cpu/x86/disassembler/zydis_allowed.hpp"

namespace doppel::cpu::x86 {
namespace {

using Bytes = std::vector<std::uint8_t>;

/// In the order of IsaFeature, as /proc/cpuinfo spells them; "-": never asked of the host.
constexpr auto kFlags = std::to_array<std::string_view>({
    "",           "fpu",     "tsc",    "msr",     "cx8",        "sep",     "cmov",
    "clflush",    "mmx",     "fxsr",   "sse",     "sse2",       "pni",     "pclmulqdq",
    "-",          "ssse3",   "fma",    "cx16",    "sse4_1",     "sse4_2",  "movbe",
    "popcnt",     "aes",     "xsave",  "avx",     "f16c",       "rdrand",  "fsgsbase",
    "bmi1",       "avx2",    "bmi2",   "invpcid", "rdseed",     "adx",     "-",
    "clflushopt", "clwb",    "sha_ni", "rdpid",   "",           "lahf_lm", "3dnowprefetch",
    "3dnow",      "syscall", "rdtscp", "lm",      "xsaveopt",   "xsavec",  "xsaves",
    "-",          "-",       "gfni",   "vaes",    "vpclmulqdq",
});
static_assert(kFlags.size() == std::size_t(IsaFeature::Count));

class Host {
public:
    static constexpr std::uint64_t kBase = 0x7000'0000; // as a system call: no such number
    static constexpr std::size_t kSize = 0x10000;

    explicit Host(CodeSize code_size) : code_size_{code_size} {
        void* wanted = reinterpret_cast<void*>(kBase); // NOLINT: below 4 GiB for 32-bit code
        auto* mapped = ::mmap(wanted, kSize, PROT_READ | PROT_WRITE | PROT_EXEC,
                              MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        REQUIRE(mapped == wanted);
        memory_ = static_cast<std::uint8_t*>(mapped);
        std::ifstream info{"/proc/cpuinfo"};
        while (std::getline(info, flags_) && !flags_.starts_with("flags"))
            ;
        flags_ += ' ';
        start();
    }
    Host(const Host&) = delete;
    Host& operator=(const Host&) = delete;
    ~Host() {
        ::kill(child_, SIGKILL);
        ::waitpid(child_, nullptr, 0);
        ::munmap(memory_, kSize);
    }

    bool has(IsaFeature feature) const {
        const auto flag = kFlags[std::size_t(feature)];
        return flag.empty() || flags_.find(fmt::format(" {} ", flag)) != std::string::npos;
    }

    struct Outcome {
        int signal;         // SIGTRAP: executed, SIGILL: undefined, 0: the child is gone
        std::uint64_t size; // how far RIP moved
    };
    Outcome step(const Bytes& bytes) {
        constexpr std::size_t kCode = 0x2000;
        std::memset(memory_ + kCode, 0xcc, 32);
        std::memcpy(memory_ + kCode, bytes.data(), bytes.size());
        user_regs_struct registers = registers_;
        for (auto* reg : {&registers.rax, &registers.rbx, &registers.rcx, &registers.rdx,
                          &registers.rsi, &registers.rdi, &registers.rbp, &registers.rsp,
                          &registers.r8, &registers.r9, &registers.r10, &registers.r11,
                          &registers.r12, &registers.r13, &registers.r14, &registers.r15})
            *reg = kBase + kSize / 2;
        registers.rip = kBase + kCode;
        registers.eflags = 0x202;
        registers.orig_rax = ~0ull;
        if (code_size_ == CodeSize::Bits32) {
            registers.cs = 0x23; // Linux's 32-bit user code and data segments
            registers.ss = registers.ds = registers.es = 0x2b;
        }
        ::ptrace(PTRACE_SETREGS, child_, nullptr, &registers);
        ::ptrace(PTRACE_SETFPREGS, child_, nullptr, &vectors_);
        ::ptrace(PTRACE_SINGLESTEP, child_, nullptr, nullptr);
        int status = 0;
        ::waitpid(child_, &status, 0);
        if (!WIFSTOPPED(status)) {
            start();
            return {0, 0};
        }
        ::ptrace(PTRACE_GETREGS, child_, nullptr, &registers);
        return {WSTOPSIG(status), registers.rip - kBase - kCode};
    }

private:
    void start() {
        child_ = ::fork();
        if (child_ == 0) {
            ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
            ::raise(SIGSTOP);
            ::_exit(0);
        }
        ::waitpid(child_, nullptr, 0);
        ::ptrace(PTRACE_SETOPTIONS, child_, nullptr, PTRACE_O_EXITKILL);
        ::ptrace(PTRACE_GETREGS, child_, nullptr, &registers_);
        ::ptrace(PTRACE_GETFPREGS, child_, nullptr, &vectors_);
    }

    CodeSize code_size_;
    std::uint8_t* memory_ = nullptr;
    pid_t child_ = 0;
    std::string flags_;
    user_regs_struct registers_{};
    user_fpregs_struct vectors_{};
};

/// Where CPUs themselves differ, or the decoder cannot know.
bool may_be_undefined(const Instruction& in) {
    switch (in.op) {
    case Op::Clac: // #UD above CPL 0
    case Op::Stac:
    case Op::Monitor:
    case Op::Mwait:
    case Op::Rsm:      // outside SMM
    case Op::Sysenter: // AMD: in long mode
    case Op::Sysexit:
    case Op::Syscall: // Intel: outside 64-bit code
    case Op::Sysret:
    case Op::Vmcall:
    case Op::Vmmcall: return true;
    case Op::Nop: // 0F 0D with a register: AMD raises #UD
        return in.opcode == 0x0d;
    default: return false;
    }
}

/// The CPU does something with what we call undefined: hidden from guests, or the CPU is lax.
bool may_be_hidden(const Bytes& bytes, CodeSize code_size) {
    const bool vex3 = bytes[0] == 0xc4 && (bytes[1] & 0xc0) == 0xc0;
    const unsigned map = vex3 ? bytes[1] & 0x1fu : 0;
    return is_hidden_instruction(bytes, code_size) ||
           (map == 1 && bytes[3] == 0xae && (bytes[2] & 3) == 1) || // Skylake: CLWB with VEX
           (map == 1 && (bytes[2] & 0x44) == 4 && bytes[3] >= 0x41 &&
            bytes[3] <= 0x4b) || // AMD with AVX-512: mask registers above 7 by three bits
           (map == 3 && code_size == CodeSize::Bits32 &&
            (bytes[3] == 0x16 || bytes[3] == 0x22)) || // Intel: VPEXTRQ, VPINSRQ without their W
           bytes[0] == 0xf0 ||                         // AMD: LOCK MOV CR0 is CR8
           (bytes[0] == 0xc4 && bytes[3] <= 1 && (bytes[1] & 3) == 3) || // AMD: VPERMQ ignores W
           (bytes[1] == 0x0f && bytes[2] == 0x01 && bytes[3] == 0xc1);   // a hypervisor's VMCALL
}

bool is_repeated(const Instruction& in) {
    return (in.rep() || in.repne()) &&
           (in.type == InstructionClass::String || in.type == InstructionClass::Io);
}

/// UMIP: the kernel emulates these and the step ends elsewhere.
bool is_emulated(const Instruction& in) {
    return in.op == Op::Sgdt || in.op == Op::Sidt || in.op == Op::Sldt || in.op == Op::Smsw ||
           in.op == Op::Str;
}

class Judge {
public:
    explicit Judge(CodeSize code_size) : code_size_{code_size}, host_{code_size} {}

    void check(Bytes bytes) {
        bytes.resize(15);
        Instruction in;
        const bool ours = decode(bytes, code_size_, in) == DecodeStatus::Ok;
        const auto [signal, size] = host_.step(bytes);
        if (signal == 0 || (ours && !host_.has(in.feature)))
            return;
        ++judged_;
        if (ours && signal == SIGILL && !may_be_undefined(in))
            complain("the CPU calls it undefined", bytes);
        else if (!ours && signal != SIGILL && !may_be_hidden(bytes, code_size_))
            complain("the CPU knows it", bytes);
        else if (ours && signal == SIGTRAP && in.branch == BranchKind::None && !is_repeated(in) &&
                 !is_emulated(in) && size != in.length)
            complain(fmt::format("its length is {}", size), bytes);
    }

    ~Judge() { MESSAGE(judged_ << " encodings judged"); }

private:
    void complain(const std::string& what, const Bytes& bytes) {
        if (++complaints_ > 20)
            return;
        std::string hex;
        for (const auto byte : bytes)
            hex += fmt::format(" {:02x}", byte);
        FAIL_CHECK(what << ":" << hex);
    }

    CodeSize code_size_;
    Host host_;
    long judged_ = 0;
    long complaints_ = 0;
};

bool is_prefix_or_escape(unsigned byte, CodeSize code_size) {
    const bool rex = code_size == CodeSize::Bits64 && byte >= 0x40 && byte < 0x50;
    return rex || byte == 0x0f || byte == 0x62 || (byte & 0xfe) == 0xc4 || (byte & 0xe7) == 0x26 ||
           (byte >= 0x64 && byte < 0x68) || byte == 0xf0 || byte == 0xf2 || byte == 0xf3;
}

void judge_legacy(CodeSize code_size, const std::vector<Bytes>& prefix_sets) {
    Judge judge{code_size};
    const std::vector<Bytes> maps = {{}, {0x0f}, {0x0f, 0x38}, {0x0f, 0x3a}};
    for (const Bytes& prefixes : prefix_sets)
        for (const Bytes& map : maps)
            for (unsigned opcode = 0; opcode < 256; ++opcode) {
                if (map.empty() ? is_prefix_or_escape(opcode, code_size)
                                : map.size() == 1 && (opcode == 0x38 || opcode == 0x3a))
                    continue;
                for (unsigned modrm = 0; modrm < 256; modrm += map.size() > 1 ? 5 : 1) {
                    Bytes bytes = prefixes;
                    bytes.insert(bytes.end(), map.begin(), map.end());
                    bytes.insert(bytes.end(), {std::uint8_t(opcode), std::uint8_t(modrm)});
                    judge.check(bytes);
                }
            }
}

void judge_vex(CodeSize code_size) {
    Judge judge{code_size};
    for (unsigned map = 1; map < 4; ++map)
        for (unsigned bits = 0; bits < 16; ++bits) // W, L, pp
            for (const unsigned vvvv : {15u, 1u})
                for (unsigned opcode = 0; opcode < 256; ++opcode)
                    for (unsigned modrm = 2; modrm < 256; modrm += modrm < 0x40 ? 8 : 72)
                        judge.check({0xc4, std::uint8_t(0xe0 | map),
                                     std::uint8_t(bits >> 3 << 7 | vvvv << 3 | (bits & 7)),
                                     std::uint8_t(opcode), std::uint8_t(modrm), 0x20});
}

} // namespace

TEST_CASE("64-bit code: the CPU agrees on what exists and how long it is") {
    judge_legacy(CodeSize::Bits64, {{}, {0x66}, {0xf2}, {0xf3}, {0x48}, {0xf0}});
}
TEST_CASE("32-bit code: the CPU agrees on what exists and how long it is") {
    judge_legacy(CodeSize::Bits32, {{}, {0x66}, {0xf2}, {0xf3}});
}
TEST_CASE("VEX: the CPU agrees on what exists") {
    judge_vex(CodeSize::Bits64);
    judge_vex(CodeSize::Bits32);
}

} // namespace doppel::cpu::x86
