// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/guards.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <optional>

#include "cpu/x86/cpu_state.hpp"
#include "cpu/x86/decoder/decoder.hpp"
#include "cpu/x86/frontend/direct/jump_table.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

using Bytes = std::span<const std::uint8_t>;

constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kInStep = 64; // bytes of code, by the end of which reading is in step
constexpr std::size_t kAlignment = 16;
constexpr std::uint32_t kNone = ~std::uint32_t{0};

bool is_padding(const Instruction& instruction) {
    constexpr std::uint8_t kNop = 0x90, kInt3 = 0xcc, kLongNop = 0x1f;
    return (instruction.map == OpcodeMap::Primary &&
            (instruction.opcode == kNop || instruction.opcode == kInt3)) ||
           (instruction.map == OpcodeMap::Map0F && instruction.opcode == kLongNop);
}

bool is_jump(const Instruction& instruction) {
    return instruction.branch == BranchKind::Jump || instruction.branch == BranchKind::Conditional;
}

bool ends(const Instruction& instruction) {
    return instruction.branch == BranchKind::Jump ||
           instruction.branch == BranchKind::IndirectJump ||
           instruction.branch == BranchKind::Return;
}

/// As functions begin that save registers or make room on the stack, and labels of a switch do not.
bool is_prologue(const Instruction& instruction) {
    const bool changes_rsp = instruction.op == Op::Push || instruction.op == Op::Sub;
    return changes_rsp && (instruction.registers_written >> Rsp & 1) != 0;
}

/// Code as one reads it from the first byte on.
class Text {
public:
    Text(Bytes code, std::uint64_t linear, const ReadMemory& read_memory)
        : code_{code}, linear_{linear}, at_(code.size()) {
        read();
        find_entries();
        if (read_memory != nullptr && read_tables(read_memory))
            find_entries();
    }

    bool begins(std::uint32_t place) const { return at_[place].begins; }
    /// Where a function may begin, the last that is not behind `place`; kNone: there is none.
    std::uint32_t candidate_before(std::uint32_t place) const { return before(candidates_, place); }
    /// Where the next function surely begins behind `place`, or the code ends.
    std::uint32_t end_of_function(std::uint32_t place) const { return behind(functions_, place); }
    bool is_function(std::uint32_t place) const {
        return std::ranges::binary_search(functions_, place);
    }
    /// Where it seems to begin.
    std::uint32_t likely_end(std::uint32_t place) const { return behind(likely_, place); }
    /// Whether the function around `place` has a jump of which nobody knows where it leads, and
    /// which was `reached`.
    bool may_be_jumped_to(std::uint32_t place, const std::vector<bool>& reached) const {
        const std::uint32_t begin = before(functions_, place), end = end_of_function(place);
        return std::ranges::any_of(anywhere_, [&](std::uint32_t jump) {
            return (begin == kNone || jump >= begin) && jump < end && reached[jump];
        });
    }
    /// What can be reached from all other entries without passing this one; by offset.
    std::vector<bool> reached_without(std::uint32_t entry) const;

private:
    struct At {
        bool begins = false; // an instruction
        bool jumped_to = false, called = false;
        bool padding = false, prologue = false;
        bool is_call = false;
        std::uint32_t next = kNone, target = kNone;
    };

    static std::uint32_t before(const std::vector<std::uint32_t>& places, std::uint32_t place) {
        const auto behind = std::ranges::upper_bound(places, place);
        return behind == places.begin() ? kNone : *std::prev(behind);
    }
    std::uint32_t behind(const std::vector<std::uint32_t>& places, std::uint32_t place) const {
        const auto found = std::ranges::upper_bound(places, place);
        return found == places.end() ? static_cast<std::uint32_t>(code_.size()) : *found;
    }
    void read();
    void read_one(std::uint32_t place, const Instruction& instruction);
    void find_entries();
    void drop_crossed_candidates();
    bool read_tables(const ReadMemory& read_memory);
    std::optional<JumpTable> table_of(std::uint32_t jump) const;
    std::uint32_t target_of(const JumpTable& table, unsigned entry,
                            const ReadMemory& read_memory) const;

    Bytes code_;
    std::uint64_t linear_; // of its first byte
    std::vector<At> at_;
    std::vector<std::uint32_t> entries_;    // surely something begins
    std::vector<std::uint32_t> candidates_; // a function may begin: entries, and others
    std::vector<std::uint32_t> likely_;     // entries that may be a function's, or a label's …
    std::vector<std::uint32_t> functions_;  // … and those that are no label's
    std::vector<std::uint32_t> anywhere_;   // jumps through registers or tables
};

std::vector<bool> Text::reached_without(std::uint32_t entry) const {
    std::vector<bool> reached(code_.size());
    std::vector<std::uint32_t> left;
    const auto go_to = [&](std::uint32_t place) {
        if (place == kNone || place == entry || reached[place] || !at_[place].begins)
            return;
        reached[place] = true;
        left.push_back(place);
    };
    for (const std::uint32_t other : entries_)
        go_to(other);
    while (!left.empty()) {
        const At& at = at_[left.back()];
        left.pop_back();
        go_to(at.next);
        go_to(at.target);
    }
    return reached;
}

void Text::read_one(std::uint32_t place, const Instruction& instruction) {
    const std::uint32_t behind = place + instruction.length;
    At& at = at_[place];
    at.padding = is_padding(instruction);
    at.prologue = is_prologue(instruction);
    at.is_call =
        instruction.branch == BranchKind::Call || instruction.branch == BranchKind::IndirectCall;
    if (!ends(instruction) && behind < code_.size())
        at.next = behind;
    if (instruction.branch == BranchKind::IndirectJump &&
        (!instruction.has_memory() || instruction.memory_base != kRip))
        anywhere_.push_back(place);
    const std::uint64_t target = behind + instruction.immediate;
    if (target >= code_.size())
        return;
    if (is_jump(instruction)) {
        at.target = static_cast<std::uint32_t>(target);
        at_[target].jumped_to = true;
    } else if (instruction.branch == BranchKind::Call) {
        at_[target].called = true;
    }
}

void Text::read() {
    for (std::uint32_t place = 0; place < code_.size();) {
        at_[place].begins = true;
        Instruction instruction;
        const auto rest = code_.subspan(place, std::min<std::size_t>(15, code_.size() - place));
        if (decode(rest, CodeSize::Bits64, instruction) == DecodeStatus::Ok) {
            read_one(place, instruction);
            place += instruction.length;
        } else { // UD2, or who knows, such as EVEX: that goes on
            const bool is_ud2 = rest.size() > 1 && rest[0] == 0x0f && rest[1] == 0x0b;
            if (!is_ud2 && place + 1 < code_.size())
                at_[place].next = place + 1;
            place += is_ud2 ? 2 : 1;
        }
    }
}

void Text::find_entries() {
    for (auto* const places : {&entries_, &candidates_, &likely_, &functions_})
        places->clear();
    constexpr std::array<std::uint8_t, 4> kEndbr64{0xf3, 0x0f, 0x1e, 0xfa};
    bool goes_on = false, calls = false, padded = false; // what is before
    for (std::uint32_t place = 0; place < code_.size(); ++place) {
        const At& at = at_[place];
        if (!at.begins)
            continue;
        const bool marked =
            at.called ||
            std::ranges::mismatch(code_.subspan(place), kEndbr64).in2 == kEndbr64.end();
        if (at.padding && !marked) {
            padded = true;
            continue;
        }
        const bool aligned = place % kAlignment == 0;
        // Behind a call that may not return: in the midst of a function there is no padding there.
        const bool stands_alone = !goes_on || (calls && padded && aligned);
        const bool begins = marked || (stands_alone && !at.jumped_to);
        if (begins)
            entries_.push_back(place);
        if (begins || (aligned && (stands_alone || calls)))
            candidates_.push_back(place);
        const bool likely = marked || (begins && aligned && padded);
        if (likely)
            likely_.push_back(place);
        if (marked || (likely && at.prologue))
            functions_.push_back(place);
        goes_on = at.next != kNone;
        calls = at.is_call;
        padded = false;
    }
    drop_crossed_candidates();
}

/// Of a jump, as far as it is told by the instructions before it.
std::optional<JumpTable> Text::table_of(std::uint32_t jump) const {
    constexpr std::size_t kMost = 16;
    std::vector<std::uint32_t> begins{jump};
    for (std::uint32_t place = jump; place-- > 0 && begins.size() < kMost;) {
        if (at_[place + 1].jumped_to || at_[place + 1].called)
            break; // what comes from there may have another table
        if (at_[place].begins)
            begins.insert(begins.begin(), place);
    }
    return jump_table_of(code_, linear_, begins);
}

/// Of an entry; kNone: it cannot be read, or leads elsewhere.
std::uint32_t Text::target_of(const JumpTable& table, unsigned entry,
                              const ReadMemory& read_memory) const {
    std::array<std::uint8_t, 8> bytes{};
    const std::size_t size = table.relative ? 4 : 8;
    if (!read_memory(table.linear + entry * size, std::span{bytes}.first(size)))
        return kNone;
    std::uint64_t value = 0;
    std::memcpy(&value, bytes.data(), sizeof value);
    const auto distance = static_cast<std::int64_t>(static_cast<std::int32_t>(value));
    const std::uint64_t target =
        (table.relative ? table.linear + static_cast<std::uint64_t>(distance) : value) - linear_;
    return target < code_.size() ? static_cast<std::uint32_t>(target) : kNone;
}

/// Marks what they lead to, within their functions. False: there is none.
bool Text::read_tables(const ReadMemory& read_memory) {
    constexpr unsigned kMost = 256; // entries
    std::vector<std::uint32_t> targets;
    for (const std::uint32_t jump : anywhere_) {
        const auto table = table_of(jump);
        if (!table)
            continue;
        const std::uint32_t begin = before(functions_, jump), end = end_of_function(jump);
        for (unsigned entry = 0; entry < kMost; ++entry) {
            const std::uint32_t target = target_of(*table, entry, read_memory);
            const bool within = target != kNone && (begin == kNone || target > begin) &&
                                target < end && at_[target].begins;
            if (!within)
                break;
            targets.push_back(target);
        }
    }
    for (const std::uint32_t target : targets)
        at_[target].jumped_to = true;
    return !targets.empty();
}

/// What a jump of the code before crosses is in the midst of a function.
void Text::drop_crossed_candidates() {
    std::uint32_t reach = 0;
    std::vector<std::uint32_t> crossed;
    for (std::uint32_t place = 0; place < code_.size(); ++place) {
        if (std::ranges::binary_search(functions_, place))
            reach = 0;
        if (reach > place)
            crossed.push_back(place);
        const std::uint32_t target = at_[place].target;
        if (target != kNone && target < end_of_function(place))
            reach = std::max(reach, target);
    }
    std::erase_if(candidates_, [&](std::uint32_t place) {
        return !std::ranges::binary_search(entries_, place) &&
               std::ranges::binary_search(crossed, place);
    });
}

} // namespace

std::vector<Guard> guards_of(Bytes code, std::size_t page, std::span<const std::uint16_t> secretive,
                             std::uint64_t linear, const ReadMemory& read) {
    const Text text{code, linear, read};
    std::vector<Guard> guards;
    std::uint32_t entry = kNone;
    std::vector<bool> reached;
    for (std::size_t i = 0; i < secretive.size(); ++i) {
        const std::uint16_t offset = secretive[i];
        const auto place = static_cast<std::uint32_t>(page + offset);
        const std::uint32_t before = text.candidate_before(place);
        if (before != kNone && before != entry) {
            entry = before;
            reached = text.reached_without(entry);
        }
        const bool guarded = before != kNone && before >= std::max(page, kInStep) &&
                             text.begins(place) && !reached[place] &&
                             !text.may_be_jumped_to(place, reached);
        const std::size_t end = std::min<std::size_t>(text.likely_end(place) - page, kPageBytes);
        const Guard guard{.place = guarded ? static_cast<std::uint16_t>(before - page) : offset,
                          .end = guarded ? static_cast<std::uint16_t>(end) : std::uint16_t{0},
                          .first = i,
                          .count = 1,
                          .is_function = guarded && text.is_function(before)};
        if (!guards.empty() && guarded && guards.back().place == guard.place) {
            guards.back().end = guard.end;
            ++guards.back().count;
        } else {
            guards.push_back(guard);
        }
    }
    for (Guard& guard : guards)
        if (guard.count == 1) { // the instruction itself is no worse
            guard.place = secretive[guard.first];
            guard.end = 0;
            guard.is_function = false;
        }
    std::ranges::sort(guards, {}, &Guard::place);
    return guards;
}

} // namespace doppel::cpu::x86::frontend
