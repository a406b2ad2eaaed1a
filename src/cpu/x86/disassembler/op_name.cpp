// SPDX-License-Identifier: Apache-2.0
#include <array>

#include "cpu/x86/disassembler/disassembler.hpp"

namespace doppel::cpu::x86 {
namespace {

/// In the order of Op.
constexpr auto kNames = std::to_array<std::string_view>({
    "invalid", "add", "or", "adc", "sbb", "and", "sub", "xor", "cmp", "test", "inc", "dec",
    "not", "neg", "mul", "imulwide", "imul", "div", "idiv", "rol", "ror", "rcl", "rcr", "shl",
    "shr", "sar", "shld", "shrd", "bt", "bts", "btr", "btc", "bsf", "bsr", "lzcnt", "tzcnt",
    "popcnt", "crc32", "bswap", "movbe", "mov", "movzx", "movsx", "lea", "xchg", "xadd",
    "cmpxchg", "cmpxchg8b", "cmpxchg16b", "cmov", "set", "cbw", "cwd", "lahf", "sahf", "clc",
    "stc", "cmc", "cld", "std", "push", "pop", "pushsegment", "popsegment", "pusha", "popa",
    "pushf", "popf", "enter", "leave", "xlat", "aaa", "aas", "aam", "aad", "daa", "das", "salc",
    "bound", "arpl", "loadfarpointer", "movnti", "nop", "pause", "adcx", "adox", "andn", "bextr",
    "blsi", "blsmsk", "blsr", "bzhi", "mulx", "pdep", "pext", "rorx", "sarx", "shlx", "shrx",
    "jmp", "call", "ret", "jcc", "loop", "loope", "loopne", "jcxz", "jmpfar", "callfar",
    "retfar", "int", "int3", "int1", "into", "iret", "syscall", "sysret", "sysenter", "sysexit",
    "rsm", "movs", "cmps", "scas", "lods", "stos", "in", "out", "ins", "outs", "cli", "sti",
    "hlt", "cpuid", "rdtsc", "rdtscp", "rdpmc", "rdmsr", "wrmsr", "rdrand", "rdseed", "rdpid",
    "rdfsbase", "rdgsbase", "wrfsbase", "wrgsbase", "swapgs", "movfromsegment", "movtosegment",
    "movfromcontrol", "movtocontrol", "movfromdebug", "movtodebug", "clts", "lmsw", "smsw",
    "lgdt", "lidt", "sgdt", "sidt", "lldt", "sldt", "ltr", "str", "lar", "lsl", "verr", "verw",
    "clac", "stac", "invlpg", "invpcid", "invd", "wbinvd", "monitor", "mwait", "xgetbv",
    "xsetbv", "vmcall", "vmmcall", "clflush", "clflushopt", "clwb", "prefetch", "lfence",
    "mfence", "sfence", "x87", "simd", "wait", "fninit", "fnclex", "fldcw", "fnstcw", "fnstsw",
    "fnstswax", "fldenv", "fnstenv", "frstor", "fnsave", "emms", "ldmxcsr", "stmxcsr", "fxsave",
    "fxrstor", "xsave", "xsaveopt", "xsavec", "xsaves", "xrstor", "xrstors", "maskmov",
    "vmaskmov", "gather", "pcmpestr", "pcmpistr",
});
static_assert(kNames.size() == std::size_t(Op::Count));

} // namespace

std::string_view op_name(Op op) {
    return op < Op::Count ? kNames[std::size_t(op)] : std::string_view{"?"};
}

} // namespace doppel::cpu::x86
