// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/interpreter/interpreter.hpp"

#include "cpu/x86/decoder/decoder.hpp"
#include "cpu/x86/interpreter/dispatch.hpp"
#include "cpu/x86/interpreter/gate.hpp"
#include "cpu/x86/system/exceptions.hpp"

namespace doppel::cpu::x86 {
namespace {

constexpr std::uint32_t kMaxLength = 15;

/// kMasks[n] keeps the first n of 16 bytes.
struct ByteMasks {
    std::uint64_t words[16][2];
};
constexpr ByteMasks kMasks = [] {
    ByteMasks masks{};
    for (unsigned n = 0; n < 16; ++n)
        for (unsigned word = 0; word < 2; ++word) {
            const unsigned bytes = n > word * 8 ? n - word * 8 : 0;
            masks.words[n][word] =
                bytes >= 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (bytes * 8)) - 1;
        }
    return masks;
}();

DOPPEL_HOT CodeSize code_size_of(const SystemContext& cx) {
    if (cx.code64())
        return CodeSize::Bits64;
    const bool big = (&cx.state.segment.front())[Cs].default_big();
    return big ? CodeSize::Bits32 : CodeSize::Bits16;
}

DOPPEL_HOT std::uint64_t linear_rip(const SystemContext& cx) {
    if (cx.code64())
        return cx.state.rip;
    return (cx.state.rip + (&cx.state.segment.front())[Cs].base) & 0xffff'ffff;
}

} // namespace

[[gnu::always_inline]] inline Interpreter::Decoded& Interpreter::slot(std::uint64_t linear) {
    return decoded_.data()[(linear ^ linear >> 12) & (kDecoded - 1)];
}

[[gnu::always_inline]] inline bool
Interpreter::matches(const Decoded& decoded, const std::uint64_t (&bytes)[2], CodeSize code_size) {
    const std::uint64_t(&mask)[2] = kMasks.words[decoded.instruction.length & 15];
    const std::uint64_t* known = decoded.bytes.data();
    return decoded.key == static_cast<std::uint8_t>(code_size) + 1 &&
           (((bytes[0] & mask[0]) ^ known[0]) | ((bytes[1] & mask[1]) ^ known[1])) == 0;
}

/// When the page is in the TLB and holds more than any instruction takes; nullptr: carefully.
[[gnu::always_inline]] inline const Interpreter::Decoded*
Interpreter::fetch_quickly(std::uint64_t linear, CodeSize code_size) {
    if ((linear & 0xfff) > 0x1000 - 16)
        return nullptr;
    if (code_size != CodeSize::Bits64) {
        const std::uint64_t limit = (&cx_.state.segment.front())[Cs].limit;
        if (cx_.state.rip + 15 > limit)
            return nullptr;
    }
    const TlbEntry* entry =
        cx_.tlb.lookup(linear, permission(AccessType::Execute, fetch_privilege(cx_)));
    if (entry == nullptr || entry->host == nullptr)
        return nullptr;
    std::uint64_t bytes[2];
    __builtin_memcpy(bytes, entry->host + (linear & 0xfff), 16);
    Decoded& decoded = slot(linear);
    if (matches(decoded, bytes, code_size)) [[likely]]
        return &decoded;
    decoded.key = 0;
    const auto* code = reinterpret_cast<const std::uint8_t*>(bytes);
    if (decode({code, kMaxLength}, code_size, decoded.instruction) != DecodeStatus::Ok)
        return nullptr;
    const std::uint64_t(&mask)[2] = kMasks.words[decoded.instruction.length];
    decoded.bytes.data()[0] = bytes[0] & mask[0];
    decoded.bytes.data()[1] = bytes[1] & mask[1];
    decoded.key = static_cast<std::uint8_t>(static_cast<std::uint8_t>(code_size) + 1);
    return &decoded;
}

/// Byte for byte: the second page is touched only if the instruction reaches into it.
const Interpreter::Decoded* Interpreter::fetch_carefully(CodeSize code_size) {
    std::uint64_t linear;
    std::uint32_t allowed;
    if (!code_address(cx_, cx_.state.rip, linear, allowed))
        return nullptr;
    const std::uint32_t most = allowed < kMaxLength ? allowed : kMaxLength;
    const auto in_page = static_cast<std::uint32_t>(0x1000 - (linear & 0xfff));
    std::uint64_t bytes[2] = {};
    auto* code = reinterpret_cast<std::uint8_t*>(bytes);
    std::uint32_t got = 0;
    if (!fetch_linear(cx_, linear, code, most < in_page ? most : in_page, got))
        return nullptr;
    Decoded& decoded = slot(linear);
    decoded.key = 0;
    DecodeStatus status = decode({code, got}, code_size, decoded.instruction);
    if (status == DecodeStatus::NeedMoreBytes && got < most) {
        std::uint32_t more = 0;
        std::uint64_t rest = linear + got;
        if (code_size != CodeSize::Bits64)
            rest &= 0xffff'ffff;
        if (!fetch_linear(cx_, rest, code + got, most - got, more))
            return nullptr;
        got += more;
        status = decode({code, got}, code_size, decoded.instruction);
    }
    switch (status) {
    case DecodeStatus::Ok: break;
    case DecodeStatus::Undefined: cx_.ud(); return nullptr;
    default: cx_.gp(0); return nullptr; // too long, or beyond the limit of CS
    }
    const std::uint64_t(&mask)[2] = kMasks.words[decoded.instruction.length];
    decoded.bytes.data()[0] = bytes[0] & mask[0];
    decoded.bytes.data()[1] = bytes[1] & mask[1];
    decoded.key = static_cast<std::uint8_t>(static_cast<std::uint8_t>(code_size) + 1);
    return &decoded;
}

[[gnu::always_inline]] inline const Interpreter::Decoded* Interpreter::fetch() {
    const CodeSize code_size = code_size_of(cx_);
    const Decoded* decoded = fetch_quickly(linear_rip(cx_), code_size);
    return decoded != nullptr ? decoded : fetch_carefully(code_size);
}

StepResult Interpreter::fault() {
    ++faults_;
    return deliver_fault(cx_) ? StepResult::Continue : StepResult::Shutdown;
}

[[gnu::always_inline]] inline StepResult Interpreter::run(const Instruction& instruction,
                                                          const std::uint8_t* bytes) {
    CpuState& state = cx_.state;
    std::uint64_t next = state.rip + instruction.length;
    if (!cx_.code64())
        next &= 0xffff'ffff;
    interpreter::Execution execution{cx_, instruction, bytes, vectors_, next};
    if (interpreter::needs_gate(instruction) && !interpreter::pass_gate(cx_, instruction))
        return fault();
    if (!interpreter::kHandlers.by_op[static_cast<std::size_t>(instruction.op)](execution))
        return fault();
    state.rip = execution.next;
    // A jump to the instruction behind it passes for none: only a debugger's block steps could
    // tell.
    end_instruction(cx_, execution.next != next && !execution.unfinished ? Flow::Branched
                                                                         : Flow::InLine);
    instructions_ += execution.unfinished ? 0 : 1;
    return state.activity == Activity::Running ? StepResult::Continue : StepResult::Halted;
}

StepResult Interpreter::step() {
    if (!begin_instruction(cx_, linear_rip(cx_)))
        return fault();
    const Decoded* decoded = fetch();
    if (decoded == nullptr)
        return fault();
    return run(decoded->instruction, reinterpret_cast<const std::uint8_t*>(decoded->bytes.data()));
}

StepResult Interpreter::execute(const Instruction& instruction, const std::uint8_t* bytes) {
    if (!begin_instruction(cx_, linear_rip(cx_)))
        return fault();
    return run(instruction, bytes);
}

} // namespace doppel::cpu::x86
