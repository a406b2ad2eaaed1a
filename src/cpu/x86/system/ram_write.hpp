// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What surrounds each store of the system layer to guest RAM: others learn that the page may be
/// written, and what the page's state demands is done. vCPU thread only.
#include "cpu/x86/system/context.hpp"

namespace doppel::cpu::x86 {

class RamWrite {
public:
    /// Of [gpa, gpa + bytes), in one page of RAM with this state.
    [[gnu::always_inline]] RamWrite(SystemContext& cx, const RamView::State& state,
                                    std::uint64_t gpa, std::uint64_t bytes)
        : cx_{cx}, state_{state}, gpa_{gpa}, bytes_{bytes}, marked_{cx.ram.mark_writer(state)},
          watched_{state.load(std::memory_order_acquire) != 0 &&
                   cx.board.prepare_ram_write(gpa, bytes)} {}
    [[gnu::always_inline]] ~RamWrite() {
        if (watched_)
            cx_.board.finish_ram_write(gpa_, bytes_);
        if (marked_)
            cx_.ram.unmark_writer(state_);
    }
    RamWrite(const RamWrite&) = delete;
    RamWrite& operator=(const RamWrite&) = delete;

private:
    SystemContext& cx_;
    const RamView::State& state_;
    std::uint64_t gpa_;
    std::uint64_t bytes_;
    bool marked_; // not before
    bool watched_;
};

} // namespace doppel::cpu::x86
