// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Which loops are hot: counts the backward jumps that lead to their heads, as long as these are
/// not linked, and how many of them continue the run of turns that the last one was of. A loop that
/// is mostly left after a turn or two gains nothing by checks made beforehand.
#include <array>
#include <cstdint>

#include "cpu/translator/cache/block.hpp"

namespace doppel::cpu::x86::frontend {

/// A guest register that a turn of the loop changes by a constant.
struct LoopCounter {
    std::uint8_t reg = 0;
    std::int32_t step = 0;
};

class LoopProfile {
public:
    enum class Verdict : std::uint8_t { Unknown, Wait, Hot, Cold };

    /// Before the first visit().
    void set_threshold(std::uint32_t jumps) { threshold_ = jumps; }
    /// A jump to the head of a loop; Unknown: begin() says more. Hot and Cold are said once.
    Verdict visit(const translator::BlockKey& head, const std::array<std::uint64_t, 16>& registers);
    void begin(const translator::BlockKey& head, const LoopCounter& counter) {
        entry(head) = {.head = head, .counter = counter};
    }

private:
    struct Entry {
        translator::BlockKey head;
        LoopCounter counter;
        std::uint64_t last = 0; // what the counter was
        std::uint32_t jumps = 0, continued = 0;
    };
    static constexpr std::size_t kEntries = 64; // loops that share one start over
    Entry& entry(const translator::BlockKey& head) {
        return entries_.data()[(head.gpa ^ head.gpa >> 6) % kEntries];
    }

    std::uint32_t threshold_ = 0;
    std::array<Entry, kEntries> entries_{};
};

} // namespace doppel::cpu::x86::frontend
