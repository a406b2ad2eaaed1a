// SPDX-License-Identifier: Apache-2.0
/// Where a block begins to use lent homes (lend_scan.hpp), and all ways out of that. A lender's own
/// value waits in the borrower's place in CpuState::gpr meanwhile.
#include "cpu/x86/frontend/block_translator.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

/// Borrowers and lenders change places: to lend, and to give back. Flag-free. `in_miss`: both
/// scratch registers are in use, and time is of no account.
void BlockTranslator::emit_lend(bool in_miss) {
    for (std::size_t i = 0; i < scan_.lending_count; ++i) {
        const Lending& lending = scan_.lendings.at(i);
        const HostReg home = kHome[lending.home_of];
        if (in_miss) {
            a_.xchg(slot(lending.reg), home);
            continue;
        }
        a_.load(kScratch1, slot(lending.reg));
        a_.store(slot(lending.reg), home);
        a_.mov(home, kScratch1);
    }
}

/// Recipes of flags name registers as they were until here.
void BlockTranslator::end_lending() {
    if (!lending_)
        return;
    release_slots();
    hold_flags();
    recipe_ = {};
    take(kScratch1);
    emit_lend(false);
    lending_ = false;
}

/// Where the dispatcher goes on after a miss: lent again, to the check, and behind it to the
/// access. `cold` leads there from now on.
void BlockTranslator::emit_lend_again(Cold& cold) {
    const std::uint8_t* const check = cold.relative_to;
    const bool access = cold.why == Exit::Miss && !cold.group;
    std::uint8_t* const begin = a_.here();
    emit_lend(false);
    a_.jump(check);
    if (access) {
        const std::uint8_t* const to = check + cold.site.extra;
        cold.site.extra = static_cast<std::uint16_t>(a_.here() - begin);
        emit_lend(true);
        a_.jump(to);
    }
    cold.relative_to = begin;
}

/// A conditional branch out of the lending.
void BlockTranslator::emit_lent_link(const Cold& cold) {
    emit_lend(false);
    Cold link = cold;
    link.lent = false;
    a_.align_link(1);
    link.place = link.relative_to = a_.jump_later();
    cold_.push_back(link);
}

} // namespace doppel::cpu::x86::frontend
