// SPDX-License-Identifier: Apache-2.0
/// Where a block begins to use lent homes (lend_scan.hpp), and all ways out of that. A lender's own
/// value waits in its place in CpuState::gpr meanwhile.
#include "cpu/x86/frontend/block_translator.hpp"

namespace doppel::cpu::x86::frontend {

using namespace translator;

/// Flag-free, as the next.
void BlockTranslator::emit_lend() {
    for (std::size_t i = 0; i < scan_.lending_count; ++i) {
        const Lending& lending = scan_.lendings.at(i);
        a_.store(slot(lending.home_of), kHome[lending.home_of]);
        a_.load(kHome[lending.home_of], slot(lending.reg));
    }
}

void BlockTranslator::emit_give_back() {
    for (std::size_t i = 0; i < scan_.lending_count; ++i) {
        const Lending& lending = scan_.lendings.at(i);
        a_.store(slot(lending.reg), kHome[lending.home_of]);
        a_.load(kHome[lending.home_of], slot(lending.home_of));
    }
}

/// Recipes of flags name registers as they were until here.
void BlockTranslator::end_lending() {
    if (!lending_)
        return;
    hold_flags();
    recipe_ = {};
    emit_give_back();
    lending_ = false;
}

/// Where the dispatcher goes on after a miss: lent again, to the check, and behind it to the
/// access. `cold` leads there from now on.
void BlockTranslator::emit_lend_again(Cold& cold) {
    const std::uint8_t* const check = cold.relative_to;
    const bool access = cold.why == Exit::Miss && !cold.group;
    std::uint8_t* const begin = a_.here();
    emit_lend();
    a_.jump(check);
    if (access) {
        const std::uint8_t* const to = check + cold.site.extra;
        cold.site.extra = static_cast<std::uint16_t>(a_.here() - begin);
        emit_lend();
        a_.jump(to);
    }
    cold.relative_to = begin;
}

/// A conditional branch out of the lending.
void BlockTranslator::emit_lent_link(const Cold& cold) {
    emit_give_back();
    Cold link = cold;
    link.lent = false;
    a_.align_link(1);
    link.place = link.relative_to = a_.jump_later();
    cold_.push_back(link);
}

} // namespace doppel::cpu::x86::frontend
