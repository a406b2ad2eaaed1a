// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/guards.hpp"

#include <algorithm>
#include <array>
#include <iterator>

#include "cpu/x86/decoder/decoder.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

using Bytes = std::span<const std::uint8_t>;

constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kInStep = 64; // bytes of code, by the end of which reading is in step
constexpr std::size_t kAlignment = 16;
constexpr std::uint32_t kNone = ~std::uint32_t{0};

/// Code as one reads it from the first byte on.
class Text {
public:
    explicit Text(Bytes code) : code_{code}, at_(code.size()) {
        read();
        find_entries();
    }

    /// The last that is not behind `place`; kNone: there is none.
    std::uint32_t entry_before(std::uint32_t place) const {
        const auto behind = std::ranges::upper_bound(entries_, place);
        return behind == entries_.begin() ? kNone : *std::prev(behind);
    }

    /// What can be reached from all others that are no mere candidates, without passing `entry`; by
    /// offset.
    std::vector<bool> reached_without(std::uint32_t entry) const {
        std::vector<bool> reached(code_.size());
        std::vector<std::uint32_t> left;
        const auto go_to = [&](std::uint32_t place) {
            if (place == kNone || place == entry || reached[place] || !at_[place].begins)
                return;
            reached[place] = true;
            left.push_back(place);
        };
        for (const std::uint32_t other : sure_entries_)
            go_to(other);
        while (!left.empty()) {
            const At& at = at_[left.back()];
            left.pop_back();
            go_to(at.next);
            go_to(at.target);
        }
        return reached;
    }

private:
    struct At {
        bool begins = false; // an instruction
        bool jumped_to = false;
        bool padding = false;
        bool call = false;
        std::uint32_t next = kNone, target = kNone;
    };

    void read();
    void read_one(std::uint32_t place, const Instruction& instruction);
    void find_entries();
    bool is_padding(const Instruction& instruction) const;

    Bytes code_;
    std::vector<At> at_;
    std::vector<std::uint32_t> entries_, sure_entries_;
};

bool Text::is_padding(const Instruction& instruction) const {
    constexpr std::uint8_t kNop = 0x90, kInt3 = 0xcc, kLongNop = 0x1f;
    return (instruction.map == OpcodeMap::Primary &&
            (instruction.opcode == kNop || instruction.opcode == kInt3)) ||
           (instruction.map == OpcodeMap::Map0F && instruction.opcode == kLongNop);
}

void Text::read_one(std::uint32_t place, const Instruction& instruction) {
    constexpr std::uint8_t kUd2 = 0x0b;
    const std::uint32_t behind = place + instruction.length;
    At& at = at_[place];
    at.padding = is_padding(instruction);
    at.call =
        instruction.branch == BranchKind::Call || instruction.branch == BranchKind::IndirectCall;
    const bool jumps =
        instruction.branch == BranchKind::Jump || instruction.branch == BranchKind::Conditional;
    const bool ends = instruction.branch == BranchKind::Jump ||
                      instruction.branch == BranchKind::IndirectJump ||
                      instruction.branch == BranchKind::Return ||
                      (instruction.map == OpcodeMap::Map0F && instruction.opcode == kUd2);
    if (!ends && behind < code_.size())
        at.next = behind;
    const std::uint64_t target = behind + instruction.immediate;
    if (jumps && target < code_.size()) {
        at.target = static_cast<std::uint32_t>(target);
        at_[target].jumped_to = true;
    }
}

void Text::read() {
    for (std::uint32_t place = 0; place < code_.size();) {
        at_[place].begins = true;
        Instruction instruction;
        const auto rest = code_.subspan(place, std::min<std::size_t>(15, code_.size() - place));
        if (decode(rest, CodeSize::Bits64, instruction) != DecodeStatus::Ok) {
            ++place; // and what begins there is an entry
            continue;
        }
        read_one(place, instruction);
        place += instruction.length;
    }
}

void Text::find_entries() {
    constexpr std::array<std::uint8_t, 4> kEndbr64{0xf3, 0x0f, 0x1e, 0xfa};
    bool goes_on = false, calls = false, padded = false; // what is before
    for (std::uint32_t place = 0; place < code_.size(); ++place) {
        const At& at = at_[place];
        if (!at.begins)
            continue;
        const bool marked =
            std::ranges::mismatch(code_.subspan(place), kEndbr64).in2 == kEndbr64.end();
        if (at.padding && !marked) {
            padded = true;
            continue;
        }
        // Behind a call that may not return: in the midst of a function there is no padding there.
        const bool may_begin = calls && place % kAlignment == 0;
        const bool sure = marked || (!at.jumped_to && (!goes_on || (may_begin && padded)));
        if (sure)
            sure_entries_.push_back(place);
        if (sure || (may_begin && !at.jumped_to))
            entries_.push_back(place);
        goes_on = at.next != kNone;
        calls = at.call;
        padded = false;
    }
}

} // namespace

std::vector<Guard> guards_of(Bytes code, std::size_t page,
                             std::span<const std::uint16_t> secretive) {
    const Text text{code};
    std::vector<Guard> guards;
    std::uint32_t entry = kNone;
    std::vector<bool> reached;
    for (const std::uint16_t offset : secretive) {
        const auto place = static_cast<std::uint32_t>(page + offset);
        const std::uint32_t before = text.entry_before(place);
        if (before != kNone && before != entry) {
            entry = before;
            reached = text.reached_without(entry);
        }
        const bool guarded =
            before != kNone && before >= std::max(page, kInStep) && !reached[place];
        const auto begin = guarded ? static_cast<std::uint16_t>(entry - page) : offset;
        const auto known = std::ranges::find(guards, begin, &Guard::place);
        if (known != guards.end())
            known->last = offset;
        else
            guards.push_back({begin, offset});
    }
    return guards;
}

} // namespace doppel::cpu::x86::frontend
