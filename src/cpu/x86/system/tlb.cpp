// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/tlb.hpp"

namespace doppel::cpu::x86 {

void Tlb::insert(TlbEntry entry, bool global) {
    ++misses_;
    entry.identity = global ? global_ : local_;
    if (entry.page_shift > 22)
        huge_ = true;
    else if (entry.page_shift > 12) // 4 MiB are two regions, bits 2n and 2n + 1
        large_.data()[region(entry.page) / 64] |=
            std::uint64_t{entry.page_shift == 22 ? 3u : 1u}
            << (region(entry.page) % 64 & (entry.page_shift == 22 ? ~1u : ~0u));
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
    if (!huge_ && (large_.data()[region(linear) / 64] >> (region(linear) % 64) & 1) == 0)
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
        for (auto& word : large_)
            word = 0;
        huge_ = false;
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
