// SPDX-License-Identifier: Apache-2.0
#include "devices/pci/msix_table.hpp"

#include <bit>

#include "base/verify.hpp"

namespace doppel::devices {

namespace {

constexpr std::size_t kWordsPerEntry = 4;
constexpr std::size_t kControlWord = 3;
constexpr std::uint32_t kMasked = 1; // vector control bit 0 (PCI Local Bus 3.0 §6.8.2.9)

/// Bits of each word of an entry that can be written: the address is that of a dword.
constexpr std::uint32_t writable(std::size_t word) {
    return word == 0 ? ~3u : word == kControlWord ? kMasked : ~0u;
}

std::uint64_t words(bus::IoAccess io) { return io.size == 8 ? 2 : 1; }

} // namespace

MsixTable::MsixTable(unsigned vectors) : vectors_{vectors} {
    DOPPEL_VERIFY(vectors <= kMaxVectors, "MSI-X vectors of one function");
    reset();
}

void MsixTable::reset() {
    state_.entries.assign(vectors_ * kWordsPerEntry, 0);
    for (std::size_t i = kControlWord; i < state_.entries.size(); i += kWordsPerEntry)
        state_.entries[i] = kMasked;
    state_.pending.assign((vectors_ + 63) / 64, 0);
}

std::uint64_t MsixTable::read_table(bus::IoAccess io) const {
    std::uint64_t value = 0;
    for (std::uint64_t i = 0; i < words(io); ++i) {
        const auto word = io.offset / 4 + i;
        if (word < state_.entries.size())
            value |= std::uint64_t{state_.entries[word]} << i * 32;
    }
    return value;
}

void MsixTable::write_table(bus::IoAccess io, std::uint64_t value) {
    for (std::uint64_t i = 0; i < words(io); ++i) {
        const auto word = io.offset / 4 + i;
        if (word < state_.entries.size())
            state_.entries[word] =
                static_cast<std::uint32_t>(value >> i * 32) & writable(word % kWordsPerEntry);
    }
}

std::uint64_t MsixTable::read_pending(bus::IoAccess io) const {
    if (io.offset / 8 >= state_.pending.size())
        return 0;
    return state_.pending[io.offset / 8] >> (io.offset & 4) * 8;
}

bus::MsiMessage MsixTable::message(unsigned vector) const {
    const auto* entry = &state_.entries[vector * kWordsPerEntry];
    return {std::uint64_t{entry[1]} << 32 | entry[0], entry[2]};
}

bool MsixTable::is_masked(unsigned vector) const {
    return (state_.entries[vector * kWordsPerEntry + kControlWord] & kMasked) != 0;
}

std::optional<bus::MsiMessage> MsixTable::signal(unsigned vector, bool function_masked) {
    if (vector >= vectors_)
        return std::nullopt;
    if (!function_masked && !is_masked(vector))
        return message(vector);
    state_.pending[vector / 64] |= 1ull << vector % 64;
    return std::nullopt;
}

std::optional<bus::MsiMessage> MsixTable::take_deliverable() {
    for (unsigned word = 0; word < state_.pending.size(); ++word) {
        for (auto bits = state_.pending[word]; bits != 0; bits &= bits - 1) {
            const auto vector = word * 64 + static_cast<unsigned>(std::countr_zero(bits));
            if (is_masked(vector))
                continue;
            state_.pending[word] &= ~(bits & -bits);
            return message(vector);
        }
    }
    return std::nullopt;
}

base::Result<void> MsixTable::check(const State& state) const {
    const auto refuse = [](const char* what) { return base::fail(base::Errc::Corrupt, what); };
    if (state.entries.size() != state_.entries.size() ||
        state.pending.size() != state_.pending.size())
        return refuse("MSI-X table is of another size");
    for (std::size_t i = 0; i < state.entries.size(); ++i) {
        if ((state.entries[i] & ~writable(i % kWordsPerEntry)) != 0)
            return refuse("MSI-X table has reserved bits set");
    }
    if (vectors_ % 64 != 0 && (state.pending.back() >> vectors_ % 64) != 0)
        return refuse("MSI-X vector is pending that does not exist");
    return {};
}

} // namespace doppel::devices
