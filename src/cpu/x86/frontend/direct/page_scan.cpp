// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/page_scan.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "cpu/x86/decoder/decoder.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

using Bytes = std::span<const std::uint8_t>;

// Of 30,000 such bytes in what compilers made 180 begin an instruction: all are found, and 49
// others. With half the code to get into step it were 150 others, some in CPython's hottest pages.
constexpr std::size_t kInStep = 64; // bytes of code, by the end of which reading is in step
constexpr std::size_t kBegins = 32; // from so many places …
constexpr std::size_t kAgree = 6;   // … of which fewer than this take what is no opcode for one
static_assert(kInStep + kBegins == PageBytes::kBefore);

bool is_prefix(std::uint8_t byte) {
    return (byte & 0xf0) == 0x40 || byte == 0x66 || byte == 0x67 || byte == 0xf2 || byte == 0xf3 ||
           byte == 0x2e || byte == 0x36 || byte == 0x3e || byte == 0x26 || byte == 0x64 ||
           byte == 0x65 || byte == 0xf0;
}

constexpr std::size_t kNowhere = ~std::size_t{0};

std::size_t end_of(Bytes code, std::size_t at) {
    Instruction instruction;
    const auto rest = code.subspan(at, std::min<std::size_t>(15, code.size() - at));
    switch (decode(rest, CodeSize::Bits64, instruction)) {
    case DecodeStatus::Ok: return at + instruction.length;
    case DecodeStatus::NeedMoreBytes: return code.size();
    default: return at + 1;
    }
}

/// What those who begin to read at one of the places before `place` take for an instruction there.
/// They soon read the same, so each instruction is decoded once.
class Readers {
public:
    Readers(Bytes code, std::size_t place) : code_{code}, place_{place} {}

    /// Where the instruction begins whose opcode is at `place`, for who begins `distance` before.
    std::size_t begin_of(std::size_t distance) {
        while (distance != 0) {
            std::size_t& next = next_.at(distance);
            const std::size_t at = place_ - distance;
            if (next == 0)
                next = end_of(code_, at);
            if (place_ < next)
                return std::ranges::all_of(code_.subspan(at, distance), is_prefix) ? at : kNowhere;
            distance = place_ - next;
        }
        return place_;
    }

private:
    Bytes code_;
    std::size_t place_;
    std::array<std::size_t, kInStep + kBegins> next_{}; // by distance; 0: not decoded yet
};

/// kNowhere: it is none.
std::size_t begin_of(Bytes code, std::size_t place) {
    if (place < kInStep)
        return place; // who knows
    Readers readers{code, place};
    std::size_t opcodes = 0, found = kNowhere;
    const std::size_t begins = std::min(kBegins, place - kInStep + 1);
    for (std::size_t i = 0; i < begins; ++i) {
        const std::size_t at = readers.begin_of(kInStep + i);
        if (at == kNowhere)
            continue;
        ++opcodes;
        found = std::min(found, at);
    }
    return opcodes * kBegins >= kAgree * begins ? found : kNowhere;
}

/// The bytes behind 0F.
bool is_secretive_opcode(Bytes behind) {
    if (behind.empty())
        return true;
    const bool unknown = behind.size() == 1;
    const std::uint8_t modrm = unknown ? 0 : behind[1];
    const unsigned reg = modrm >> 3 & 7;
    const auto form = [&](unsigned wanted, bool memory) {
        return unknown || (reg == wanted && (modrm < 0xc0) == memory);
    };
    switch (behind[0]) {
    case 0x00:
        return unknown || reg == 0 || reg == 1 || reg == 4 || reg == 5; // SLDT, STR, VERR, VERW
    case 0x02: return true;                                             // LAR
    case 0x01: // SGDT, SIDT, SMSW; VMCALL, XGETBV, VMMCALL, RDPKRU, WRPKRU
        return form(0, true) || form(1, true) || reg == 4 || modrm == 0xc1 || modrm == 0xd0 ||
               modrm == 0xd9 || modrm == 0xee || modrm == 0xef;
    case 0x03:                                                          // LSL
    case 0x34:                                                          // SYSENTER
    case 0xa2: return true;                                             // CPUID
    case 0xae: return form(4, true) || form(5, true) || form(6, true);  // XSAVE, XRSTOR, XSAVEOPT
    case 0xc7: return form(4, true) || form(5, true) || form(7, false); // XSAVEC, XSAVES, RDPID
    default: return false;
    }
}

bool is_relative(BranchKind branch) {
    return branch == BranchKind::Jump || branch == BranchKind::Conditional ||
           branch == BranchKind::Call;
}

bool is_rdtscp_opcode(Bytes behind) {
    return behind.size() > 1 && behind[0] == 0x01 && behind[1] == 0xf9;
}

/// INT 3, of two bytes, INT 4 and INT 80.
bool is_interrupt(Bytes behind) {
    return behind.empty() || behind[0] == 3 || behind[0] == 4 || behind[0] == 0x80;
}

/// `found(begin, place)` for each instruction in the page with the opcode `first_byte` at `place`
/// of which `is_it` says so of the bytes behind that; in what is known of `code`.
template <typename Found>
void find_instructions(const PageBytes& code, std::uint8_t first_byte, bool (*is_it)(Bytes),
                       Found&& found) {
    constexpr std::size_t kPageEnd = PageBytes::kBefore + PageBytes::kPage;
    const Bytes known = Bytes{code.bytes}.subspan(code.first, code.end - code.first);
    for (std::size_t at = PageBytes::kBefore; at < kPageEnd; ++at) {
        const void* const next = std::memchr(code.bytes.data() + at, first_byte, kPageEnd - at);
        if (next == nullptr)
            return;
        at = static_cast<std::size_t>(static_cast<const std::uint8_t*>(next) - code.bytes.data());
        const std::size_t place = at - code.first;
        const std::size_t begin =
            is_it(known.subspan(place + 1)) ? begin_of(known, place) : kNowhere;
        if (begin != kNowhere)
            found(begin, place);
    }
}

} // namespace

bool is_secretive(std::span<const std::uint8_t> code) {
    const auto opcode = std::ranges::find_if_not(code, is_prefix);
    if (opcode == code.end())
        return true;
    const Bytes behind{opcode + 1, code.end()};
    return (*opcode == 0x0f && is_secretive_opcode(behind)) ||
           (*opcode == 0xcd && is_interrupt(behind));
}

std::vector<std::uint16_t> secretive_instructions(const PageBytes& code) {
    const Bytes known = Bytes{code.bytes}.subspan(code.first, code.end - code.first);
    std::vector<std::uint16_t> places;
    const auto note = [&](std::size_t at) { // in `known`
        places.push_back(static_cast<std::uint16_t>(std::max(at + code.first, PageBytes::kBefore) -
                                                    PageBytes::kBefore));
    };
    const auto note_with_prefixes = [&](std::size_t begin, std::size_t place) {
        note(begin);
        // Who knows which of those before are its prefixes.
        for (std::size_t i = begin; place < kInStep && i > 0 && is_prefix(known[i - 1]); --i)
            note(i - 1);
    };
    find_instructions(code, 0x0f, is_secretive_opcode, note_with_prefixes);
    find_instructions(code, 0xcd, is_interrupt, note_with_prefixes);
    std::ranges::sort(places);
    places.erase(std::ranges::unique(places).begin(), places.end());
    return places;
}

bool has_rdtscp(const PageBytes& code) {
    bool has = false;
    find_instructions(code, 0x0f, is_rdtscp_opcode, [&](std::size_t, std::size_t) { has = true; });
    return has;
}

Reached reached_instructions(std::span<const std::uint8_t> page,
                             std::vector<std::uint16_t> executed) {
    Reached reached;
    while (!executed.empty()) {
        std::size_t at = executed.back();
        executed.pop_back();
        Instruction instruction;
        while (at < page.size() && !reached.begins.test(at) &&
               decode(page.subspan(at), CodeSize::Bits64, instruction) == DecodeStatus::Ok) {
            reached.begins.set(at);
            at += instruction.length;
            const auto target =
                static_cast<std::int64_t>(at) + static_cast<std::int64_t>(instruction.immediate);
            const bool inside = target >= 0 && target < static_cast<std::int64_t>(page.size());
            if (is_relative(instruction.branch) && inside)
                executed.push_back(static_cast<std::uint16_t>(target));
            else if (is_relative(instruction.branch))
                reached.outside.push_back(target);
            if (instruction.branch != BranchKind::None &&
                instruction.branch != BranchKind::Conditional)
                break;
        }
    }
    return reached;
}

} // namespace doppel::cpu::x86::frontend
