// SPDX-License-Identifier: Apache-2.0
#include "tests/oracle/comparison.hpp"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "cpu/x86/decoder/decoder.hpp"
#include "tests/oracle/generator.hpp"
#include "tests/oracle/maker.hpp"
#include "tests/oracle/values.hpp"

namespace doppel::oracle {
namespace {

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DOPPEL_ORACLE_SANITIZED
#endif
#endif
#if defined(DOPPEL_ORACLE_SANITIZED) || defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

constexpr std::size_t kMaxReports = 40;
constexpr std::uint8_t kPageFault = 14;
constexpr const char* kNames[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                  "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

std::string hex(const std::uint8_t* bytes, std::size_t count) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i)
        text += fmt::format("{:02x}", bytes[i]);
    return text;
}

/// Long operands are accessed in pieces, and which piece meets the bad page first is each CPU's
/// own.
std::uint64_t cr2_mask(const cpu::x86::Instruction& in) {
    switch (in.op) {
    case cpu::x86::Op::Fldenv:
    case cpu::x86::Op::Fnstenv:
    case cpu::x86::Op::Frstor:
    case cpu::x86::Op::Fnsave: return ~(area::kPage - 1);
    default: return ~std::uint64_t{0};
    }
}

/// AddressSanitizer's shadow is present in the host's process; cases that reach it say nothing.
bool touches_shadow(const Outcome& guest) {
    return kSanitized && guest.vector == kPageFault && guest.cr2 >= 0x7fff'8000 &&
           guest.cr2 < 0x1000'7fff'8000;
}

class Differences {
public:
    Differences(const Case& test, const cpu::x86::Instruction& in, const Allowance& allowed)
        : test_{test}, allowed_{allowed}, cr2_mask_{cr2_mask(in) & ~allowed.cr2} {}

    template <typename T> void number(std::string_view name, T before, T host, T guest) {
        if (host != guest)
            text_ += fmt::format("    {:<8} before {:#x}  host {:#x}  engine {:#x}\n", name, before,
                                 host, guest);
    }
    template <std::size_t N>
    void bytes(std::string_view name, const std::array<std::uint8_t, N>& before,
               const std::array<std::uint8_t, N>& host, const std::array<std::uint8_t, N>& guest) {
        if (host != guest)
            text_ +=
                fmt::format("    {:<8} before {}\n             host   {}\n             engine {}\n",
                            name, hex(before.data(), N), hex(host.data(), N), hex(guest.data(), N));
    }
    void outcomes(const Outcome& host, const Outcome& guest);
    void vectors(const VectorState& host, const VectorState& guest);
    void memory(const MemoryImage& host, const MemoryImage& guest);
    std::string take() { return std::move(text_); }

private:
    const Case& test_;
    const Allowance& allowed_;
    const std::uint64_t cr2_mask_;
    std::string text_;
};

void Differences::outcomes(const Outcome& host, const Outcome& guest) {
    number<unsigned>("vector", 0, host.vector, guest.vector);
    if (host.vector == kHung || guest.vector == kHung)
        return;
    if (host.vector == guest.vector && host.vector == kPageFault && host.cr2 != guest.cr2)
        number("cr2", std::uint64_t{0}, host.cr2 & cr2_mask_, guest.cr2 & cr2_mask_);
    const bool has_error_code =
        host.vector == 8 || (host.vector >= 10 && host.vector <= 14) || host.vector == 17;
    // In the kernel's half of the address space something is present in the host that is not in
    // ours.
    const std::uint32_t present = host.vector == kPageFault && host.cr2 >> 63 != 0 ? 1 : 0;
    if (has_error_code)
        number("error", 0u, host.error_code | present, guest.error_code | present);
    number("rip", initial_rip(test_), host.rip, guest.rip);
    const std::uint64_t flags = kComparedFlags & ~allowed_.flags;
    number("rflags", test_.rflags & flags, host.rflags & flags, guest.rflags & flags);
    for (std::size_t i = 0; i < 16; ++i) {
        // Linux's way back to a 16-bit stack leaves its own in the upper half of rsp.
        const bool upper = !allowed_.upper_halves && (i != 4 || test_.mode != Mode::Bits16);
        const std::uint64_t mask = upper ? ~std::uint64_t{0} : 0xffff'ffff;
        number(kNames[i], test_.gpr[i], host.gpr[i] & mask, guest.gpr[i] & mask);
    }
    vectors(host.vectors, guest.vectors);
}

void Differences::vectors(const VectorState& host, const VectorState& guest) {
    if (host == guest)
        return;
    const VectorState& before = test_.vectors;
    if (!allowed_.mxcsr)
        number("mxcsr", before.mxcsr, host.mxcsr, guest.mxcsr);
    for (std::size_t i = 0; i < 16 && !allowed_.ymm; ++i)
        bytes(fmt::format("ymm{}", i), before.ymm[i], host.ymm[i], guest.ymm[i]);
    if (allowed_.x87)
        return;
    number("fcw", before.fcw, host.fcw, guest.fcw);
    number("fsw", before.fsw, host.fsw, guest.fsw);
    number("ftw", before.ftw, host.ftw, guest.ftw);
    for (std::size_t i = 0; i < 8; ++i)
        bytes(fmt::format("st{}", i), before.st[i], host.st[i], guest.st[i]);
}

void Differences::memory(const MemoryImage& host, const MemoryImage& guest) {
    if (allowed_.memory || std::memcmp(host.data(), guest.data(), host.size()) == 0)
        return;
    const auto at = std::mismatch(host.begin(), host.end(), guest.begin()).first - host.begin();
    const auto from = static_cast<std::size_t>(at) & ~std::size_t{15};
    text_ += fmt::format("    memory at image offset {:#x}\n             host   {}\n             "
                         "engine {}\n",
                         from, hex(host.data() + from, 16), hex(guest.data() + from, 16));
}

const char* name_of(Mode mode) {
    return mode == Mode::Bits64 ? "64-bit" : mode == Mode::Bits32 ? "32-bit" : "16-bit";
}

cpu::x86::Instruction instruction_of(const Case& test) {
    cpu::x86::Instruction in{};
    static_cast<void>(cpu::x86::decode({test.code.data(), 15}, code_size(test.mode), in));
    return in;
}

/// Opcode, map and the like, so that one broken instruction does not drown the others.
std::uint64_t kind_of(const cpu::x86::Instruction& in) {
    const auto group = in.op == cpu::x86::Op::Simd || in.op == cpu::x86::Op::X87;
    return (group ? std::uint64_t{in.opcode} << 16 : 0) | static_cast<std::uint64_t>(in.op);
}

} // namespace

base::Result<std::unique_ptr<Comparison>> Comparison::create(const VcpuFactory& engine) {
    std::unique_ptr<Comparison> comparison{new Comparison};
    const auto images = initial_memories();
    comparison->host_ = DOPPEL_TRY(HostCpu::create(images));
    comparison->guest_ = DOPPEL_TRY(GuestCpu::create(engine, images));
    return comparison;
}

void Comparison::add(const Case& test) {
    queue_.push_back(test);
    if (queue_.size() == HostCpu::kBatch)
        flush();
}

void Comparison::flush() {
    const auto answers = host_->run(queue_);
    for (std::size_t i = 0; i < queue_.size(); ++i) {
        const Case& test = queue_[i];
        ++cases_;
        if (!answers) {
            ++differences_;
            reports_.push_back(answers.error().message());
            break;
        }
        const Outcome& host = answers->outcomes[i];
        const Outcome guest = guest_->run(test);
        if (host.vector != 3)
            ++faults_;
        if (touches_shadow(guest))
            continue;
        const auto in = instruction_of(test);
        const Allowance allowed = allowance(test, in, host, guest);
        if (allowed.everything)
            continue;
        Differences found{test, in, allowed};
        found.outcomes(host, guest);
        if (host.vector != kHung)
            found.memory(answers->memories[i], guest_->memory());
        const std::string text = found.take();
        if (text.empty())
            continue;
        ++differences_;
        const auto kind = kind_of(in);
        if (reports_.size() < kMaxReports && std::ranges::find(seen_, kind) == seen_.end()) {
            seen_.push_back(kind);
            reports_.push_back(fmt::format("{} {}  (vector {}) rax {:#x} rcx {:#x} flags {:#x}\n{}",
                                           name_of(test.mode),
                                           hex(test.code.data(), test.code_length), host.vector,
                                           test.gpr[0], test.gpr[1], test.rflags, text));
        }
    }
    queue_.clear();
}

} // namespace doppel::oracle
