// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The checking mode: every block is executed twice from the same state, by the interpreter and by
/// translated code, and the results are compared modulo undefined flags.
///
/// before() lets the interpreter run the block's instructions one by one, keeps the state after
/// each of them and the bytes each of them overwrites; then everything is put back. Translated code
/// runs (unlinked, so that it comes back after one block). Virtual time counts its instructions
/// exactly, so after() knows which of the interpreter's states it must be in: RIP included. The
/// guest goes on with the translator's state.
///
/// What both engines leave to the interpreter (its own instructions, accesses to devices, writes to
/// code, crossings of pages) ends the block: what came before it is compared, then it is executed
/// once. Events are looked at between blocks only.
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/x86/frontend/block_scan.hpp"
#include "cpu/x86/frontend/dispatch/dispatcher.hpp"

namespace doppel::cpu::x86::frontend {

/// vCPU thread only; ordinary C++, the guest's vectors are stored.
class Checker final : public BlockObserver {
public:
    Checker(SystemContext& cx, Interpreter& interpreter);

    void before(std::uint32_t instructions) override;
    void after(std::uint64_t executed) override;

    std::uint64_t compared() const { return compared_; }
    std::uint64_t differences() const { return differences_; }

private:
    struct Overwritten {
        std::byte* host;
        std::byte old_value;
        std::byte new_value;
    };
    struct Step {
        std::array<std::uint64_t, 16> gpr;
        std::uint64_t rip, rflags, cr2;
        std::uint8_t cpl;
        std::uint16_t undefined; // flags
        std::size_t overwritten; // length of the list after this step
        std::array<Segment, kSegments> segment;
        std::uint64_t kernel_gs_base;
    };
    /// An instruction seen before, by its address and bytes.
    struct Known {
        std::array<std::uint8_t, 15> bytes{};
        Treatment treatment = Treatment::Interpret;
        std::uint32_t mode = 0;
        Instruction in{}; // length 0: empty
    };
    static constexpr std::size_t kKnown = 8192;

    bool step();
    const Known* decoded();
    bool faults(std::uint64_t linear, bool write);
    bool note_accesses(const Known& known);
    bool note_string(const Instruction& in);
    bool note_access(std::uint64_t linear, std::uint64_t bytes, bool write);
    void report(const std::string& what, std::uint64_t executed);
    std::string compare(const Step& step, bool last) const;
    std::string compare_vectors() const;

    SystemContext& cx_;
    Interpreter& interpreter_;
    CpuState start_;
    XsaveArea end_vectors_; // after the last step
    std::vector<Step> steps_;
    std::vector<Overwritten> overwritten_;
    std::vector<std::uint8_t> code_;
    std::vector<Known> known_;
    std::uint16_t undefined_ = 0;
    std::uint64_t compared_ = 0;
    std::uint64_t differences_ = 0;
};

} // namespace doppel::cpu::x86::frontend
