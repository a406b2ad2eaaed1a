// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/tlb.hpp"

namespace doppel::cpu::x86 {

void Tlb::insert(TlbEntry entry, bool global) {
    ++misses_;
    entry.identity = global ? global_ : local_;
    large_pages_ |= entry.page_shift > 12;
    slot(entry.page) = entry;
}

void Tlb::switch_to(std::uint16_t pcid) {
    pcid_ = pcid;
    for (const Space& space : spaces_)
        if (space.identity != 0 && space.pcid == pcid) {
            local_ = space.identity;
            return;
        }
    local_ = ++last_identity_;
    spaces_[next_space_] = {pcid, local_};
    next_space_ = (next_space_ + 1) % kSpaces;
}

void Tlb::forget(std::uint16_t pcid) {
    for (Space& space : spaces_)
        if (space.pcid == pcid)
            space.identity = 0;
}

void Tlb::flush_page(std::uint64_t linear) {
    slot(linear).page = 1;
    if (!large_pages_)
        return;
    // A large page is cached as many 4 KiB entries; flushing one address flushes all of it.
    for (TlbEntry& entry : entries_)
        if (entry.page_shift > 12 && (entry.page ^ linear) >> entry.page_shift == 0)
            entry.page = 1;
}

void Tlb::flush(const TlbFlush& flush) {
    ++flushes_;
    switch (flush.kind) {
    case TlbFlush::Kind::All:
        global_ = ++last_identity_;
        large_pages_ = false;
        [[fallthrough]];
    case TlbFlush::Kind::NonGlobal:
        for (Space& space : spaces_)
            space.identity = 0;
        return switch_to(pcid_);
    case TlbFlush::Kind::Pcid:
        forget(flush.pcid);
        if (flush.pcid == pcid_)
            switch_to(pcid_);
        return;
    case TlbFlush::Kind::Page: return flush_page(flush.linear);
    }
}

} // namespace doppel::cpu::x86
