// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The checking mode: every block is executed twice, by the interpreter and by translated code,
/// from the same state, and the results are compared modulo undefined flags.
///
/// before() lets the interpreter run the block's instructions one by one, keeps the state after
/// each of them and the bytes each of them overwrites; then everything is put back. Translated code
/// runs (unlinked, so it comes back after one block at most), and after() looks for the
/// interpreter's state at the same RIP. Instructions that touch devices end the interpreter's run;
/// what lies behind them is not compared.
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/x86/frontend/dispatch/dispatcher.hpp"

namespace doppel::cpu::x86::frontend {

/// vCPU thread only; ordinary C++, the guest's vectors are stored.
class Checker final : public BlockObserver {
public:
    /// `user_only`: what runs at CPL 0 is not compared.
    Checker(SystemContext& cx, Interpreter& interpreter, bool user_only)
        : cx_{cx}, interpreter_{interpreter}, user_only_{user_only} {}

    bool before() override;
    void after() override;

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
    };
    bool step();
    bool note_access(std::uint64_t linear, std::uint64_t bytes, bool write);
    void report(const std::string& what, const Step& step);
    std::string compare(const Step& step, bool last) const;

    SystemContext& cx_;
    Interpreter& interpreter_;
    CpuState start_;
    XsaveArea end_vectors_; // after the last step
    std::vector<Step> steps_;
    std::vector<Overwritten> overwritten_;
    std::vector<std::uint8_t> code_;
    const bool user_only_;
    std::uint16_t undefined_ = 0;
    std::uint64_t compared_ = 0;
    std::uint64_t differences_ = 0;
};

} // namespace doppel::cpu::x86::frontend
