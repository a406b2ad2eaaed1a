// SPDX-License-Identifier: Apache-2.0
#include "cpu/translator/mmu/tlb_set.hpp"

#include <algorithm>
#include <bit>

namespace doppel::cpu::translator {

namespace {

constexpr std::uint64_t kPage = ~std::uint64_t{0xfff};
constexpr std::uint64_t kEverywhere = ~std::uint64_t{0}; // a length; nothing is at the last address

template <std::size_t N> bool test(const std::array<std::uint64_t, N>& set, std::size_t bit) {
    return (set[bit / 64] >> (bit % 64) & 1) != 0;
}
template <std::size_t N> void add(std::array<std::uint64_t, N>& set, std::size_t bit) {
    set[bit / 64] |= std::uint64_t{1} << (bit % 64);
}
template <std::size_t N> void remove(std::array<std::uint64_t, N>& set, std::size_t bit) {
    set[bit / 64] &= ~(std::uint64_t{1} << (bit % 64));
}
template <std::size_t N>
bool overlap(const std::array<std::uint64_t, N>& one, const std::array<std::uint64_t, N>& other) {
    for (std::size_t i = 0; i < N; ++i)
        if ((one[i] & other[i]) != 0)
            return true;
    return false;
}
template <std::size_t N> void clear(std::array<std::uint64_t, N>& set) {
    for (auto& word : set)
        word = 0;
}

/// Calls `visit` with the numbers of all lots in `used`; empties that if asked to.
template <std::size_t Lot, std::size_t N, typename Visit>
void visit_used(std::array<std::uint64_t, N>& used, bool forget, const Visit& visit) {
    for (std::size_t word = 0; word < N; ++word) {
        for (std::uint64_t lots = used[word]; lots != 0; lots &= lots - 1) {
            const std::size_t lot = word * 64 + static_cast<std::size_t>(std::countr_zero(lots));
            for (std::size_t i = lot * Lot; i < (lot + 1) * Lot; ++i)
                visit(i);
        }
        if (forget)
            used[word] = 0;
    }
}

// The halves of the address space do not share bits: one is full of large pages in every kernel.
std::size_t half(std::uint64_t linear) { return linear >> 63; }
std::size_t region_hash(std::uint64_t linear) { return (linear >> 21 & 1023) | half(linear) << 10; }
std::size_t gib_hash(std::uint64_t linear) { return (linear >> 30 & 1023) | half(linear) << 10; }
std::size_t page_hash(std::uint64_t linear) { return linear >> 12 & 0x7fff; }
std::size_t host_hash(std::uint64_t host) { return host >> 12 & 0x3fff; }

} // namespace

/// All views: translated code may go from one to another without asking.
void TlbSet::prepare(Space& space) {
    std::byte* at =
        memory_ + static_cast<std::size_t>(&space - spaces_.data()) * kViews * kInstanceStride;
    for (auto& view : space.views) {
        view.tlb = reinterpret_cast<TlbInstance*>(at);
        at += kInstanceStride;
        // The memory is zeros, which is what most empty tags look like.
        view.tlb->rtag[0] = view.tlb->wtag[0] = TlbInstance::empty_tag(0);
        view.tlb->branches[0].tag = TlbInstance::empty_branch_tag(0);
        view.tlb->set_limits();
        view.tlb->branch_salt = new_salt();
        drop_stack(view);
    }
    set_supervisor_salt();
}

TlbSet::Space& TlbSet::space_for(std::uint16_t pcid) {
    Space* oldest = &spaces_[0];
    for (auto& space : spaces_) {
        if (space.used && space.pcid == pcid)
            return space;
        if (!space.used || (oldest->used && space.last_use < oldest->last_use))
            oldest = &space;
    }
    // Global entries of the former owner are everybody's.
    if (oldest->used)
        for (auto& view : oldest->views)
            empty(view, true);
    else
        prepare(*oldest);
    oldest->used = true;
    oldest->pcid = pcid;
    return *oldest;
}

TlbInstance* TlbSet::select(std::uint16_t pcid, View view) {
    Space& space = space_for(pcid);
    space.last_use = ++uses_;
    Instance& instance = space.views[static_cast<std::size_t>(view)];
    current_ = &instance;
    return instance.tlb;
}

void TlbSet::insert(const Entry& entry) {
    Instance& instance = *current_;
    const std::uint64_t page = entry.linear & kPage;
    const std::size_t index = TlbInstance::index(page);
    instance.tlb->rtag[index] = page;
    instance.tlb->wtag[index] = entry.writable ? page : TlbInstance::empty_tag(index);
    instance.tlb->addend[index] = reinterpret_cast<std::uint64_t>(entry.host) - page;
    instance.tlb->page_host[index] = reinterpret_cast<std::uint64_t>(entry.host);
    if (entry.writable)
        add(instance.written, host_hash(reinterpret_cast<std::uint64_t>(entry.host)));
    if (!test(instance.in_list, index)) {
        add(instance.in_list, index);
        instance.touched[instance.touched_count++] = static_cast<std::uint16_t>(index);
    }
    if (entry.global) {
        add(instance.global, index);
        global_in_half_.data()[half(page)] = true;
    } else {
        remove(instance.global, index);
    }
    note_size(instance, page, entry.page_shift);
}

void TlbSet::note_size(Instance& instance, std::uint64_t linear, std::uint8_t page_shift) {
    if (page_shift > 21)
        add(instance.huge, gib_hash(linear));
    else if (page_shift > 12)
        add(instance.large, region_hash(linear));
}

void TlbSet::insert_branch(const Branch& branch) {
    const std::uint64_t rip = branch.rip;
    Instance& instance = *current_;
    const std::size_t index = TlbInstance::branch_index(rip);
    instance.tlb->branches[index] = {rip, branch.host};
    instance.branches_used = true;
    add(instance.code_pages, page_hash(rip));
    note_size(instance, rip, branch.page_shift);
    if (branch.global || !supervisor_view())
        insert_shared(branch);
    if (branch.global) {
        global_in_half_.data()[half(rip)] = true;
        remove(instance.branch_is_local, index); // it may stay in the list
    } else if (!test(instance.branch_is_local, index)) {
        if (instance.local_branch_count == TlbInstance::kBranches)
            empty_local_branches(instance); // full of entries that became global since
        add(instance.branch_is_local, index);
        instance.local_branches[instance.local_branch_count++] = static_cast<std::uint16_t>(index);
        instance.tlb->branches[index].tag = rip;
    }
}

/// That it is global, if it is, need not be known. The size of its page has been noted, as this
/// instance entered it: a supervisor's may come from another one.
const std::uint8_t* TlbSet::recall_branch(std::uint64_t rip) {
    const std::uint8_t* const host = supervisor_view() ? nullptr : shared_branch(rip);
    if (host != nullptr)
        insert_branch({.rip = rip, .host = host});
    return host;
}

void TlbSet::drop_branch(std::uint64_t rip) {
    const std::size_t index = TlbInstance::branch_index(rip);
    current_->tlb->branches[index].tag = TlbInstance::empty_branch_tag(index);
    if (shared_branch(rip) != nullptr)
        shared_branches()[shared_index(rip)] = {};
}

void TlbSet::insert_far_link(std::uint16_t number, const Branch& branch) {
    if (supervisor_view() || branch.rip == 0)
        return;
    current_->tlb->far_links[number] = {branch.rip, branch.host};
    add(current_->far_linked, number / kFarLinkLot);
}

void TlbSet::drop_far_link(std::uint32_t address, std::uint64_t rip) {
    auto& links = current_->tlb->far_links;
    const std::uint32_t offset =
        address - static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(links.data()));
    if (offset < sizeof links && links[offset / sizeof links[0]].tag == rip)
        links[offset / sizeof links[0]].tag = 0;
}

void TlbSet::insert_landing(std::uint32_t number, std::uint64_t rip) {
    if (supervisor_view())
        return;
    TlbInstance& tlb = *current_->tlb;
    tlb.landings[number] = rip + tlb.landing_bias();
    add(current_->landed, number / kFarLinkLot);
}

void TlbSet::empty_far_links(Instance& instance, std::uint64_t first, std::uint64_t length) {
    const bool all = length == kEverywhere;
    auto& links = instance.tlb->far_links;
    visit_used<kFarLinkLot>(instance.far_linked, all, [&](std::size_t i) {
        if (links[i].tag - first < length)
            links[i].tag = 0;
    });
    auto& landings = instance.tlb->landings;
    const std::uint64_t biased = first + instance.tlb->landing_bias();
    visit_used<kFarLinkLot>(instance.landed, all, [&](std::size_t i) {
        if (landings[i] - biased < length)
            landings[i] = 0;
    });
}

const std::uint8_t* TlbSet::shared_branch(std::uint64_t rip) const {
    const SharedBranch& entry = shared_branches()[shared_index(rip)];
    const std::uint64_t host = entry.salted_host ^ current_->tlb->branch_salt;
    return entry.rip == rip && host >> kSaltShift == 0 ? reinterpret_cast<const std::uint8_t*>(host)
                                                       : nullptr;
}

void TlbSet::insert_shared(const Branch& branch) {
    shared_branches()[shared_index(branch.rip)] = {
        branch.rip, reinterpret_cast<std::uint64_t>(branch.host) | current_->tlb->branch_salt};
    if (!supervisor_view()) {
        current_->shares_branches = true;
        return;
    }
    add(shared_regions_, region_hash(branch.rip));
    shared_used_ = true;
    shared_huge_ |= branch.page_shift > 21;
}

void TlbSet::empty_shared() {
    if (!shared_used_)
        return;
    supervisor_salt_ = new_salt();
    set_supervisor_salt();
    clear(shared_regions_);
    shared_used_ = shared_huge_ = false;
}

void TlbSet::give_up_shared(Instance& instance) {
    if (instance.shares_branches)
        instance.tlb->branch_salt = new_salt();
    instance.shares_branches = false;
}

std::uint64_t TlbSet::new_salt() {
    if (last_salt_ == kLastSalt)
        start_salts_over();
    return ++last_salt_ << kSaltShift;
}

/// Entries may bear any salt by now: all of them go, and every instance gets one that is new.
void TlbSet::start_salts_over() {
    last_salt_ = 0;
    // Salt 0 is nobody's. Zeroes throughout would be a memset, which may clobber vector registers.
    for (std::size_t i = 0; i < kSharedBranches; ++i)
        shared_branches()[i].salted_host = i;
    for (auto& space : spaces_) {
        for (auto& view : space.views) {
            if (view.tlb != nullptr)
                view.tlb->branch_salt = ++last_salt_ << kSaltShift;
            view.shares_branches = false;
        }
    }
    supervisor_salt_ = ++last_salt_ << kSaltShift;
    set_supervisor_salt();
    clear(shared_regions_);
    shared_used_ = shared_huge_ = false;
}

void TlbSet::set_supervisor_salt() {
    if (supervisor_salt_ == 0)
        supervisor_salt_ = new_salt();
    for (auto& space : spaces_)
        for (const View view : {View::Kernel, View::KernelAc})
            if (auto& one = space.views.data()[static_cast<std::size_t>(view)]; one.tlb != nullptr)
                one.tlb->branch_salt = supervisor_salt_;
}

void TlbSet::empty_entry(Instance& instance, std::size_t index) {
    instance.tlb->rtag[index] = TlbInstance::empty_tag(index);
    instance.tlb->wtag[index] = TlbInstance::empty_tag(index);
}

void TlbSet::empty_branches(Instance& instance) {
    if (!instance.branches_used)
        return;
    for (std::size_t i = 0; i < TlbInstance::kBranches; ++i)
        instance.tlb->branches[i].tag = TlbInstance::empty_branch_tag(i);
    instance.branches_used = false;
    clear(instance.code_pages);
    clear(instance.branch_is_local);
    instance.local_branch_count = 0;
    empty_far_links(instance, 0, kEverywhere);
}

void TlbSet::empty_local_branches(Instance& instance) {
    for (std::uint32_t i = 0; i < instance.local_branch_count; ++i) {
        const std::uint16_t index = instance.local_branches[i];
        if (test(instance.branch_is_local, index))
            instance.tlb->branches[index].tag = TlbInstance::empty_branch_tag(index);
    }
    clear(instance.branch_is_local);
    instance.local_branch_count = 0;
}

void TlbSet::empty(Instance& instance, bool keep_global) {
    if (instance.tlb == nullptr)
        return;
    drop_stack(instance);
    std::uint32_t kept = 0;
    if (instance.touched_count != 0)
        clear(instance.written);
    for (std::uint32_t i = 0; i < instance.touched_count; ++i) {
        const std::uint16_t index = instance.touched[i];
        if (keep_global && test(instance.global, index)) {
            instance.touched[kept++] = index;
            note_written(instance, index);
        } else {
            empty_entry(instance, index);
            remove(instance.in_list, index);
        }
    }
    instance.touched_count = kept;
    if (!keep_global || kept == 0) {
        clear(instance.huge);
        clear(instance.large);
    }
    if (!instance.branches_used)
        return;
    give_up_shared(instance);
    empty_far_links(instance, 0, kEverywhere);
    if (keep_global)
        empty_local_branches(instance);
    else
        empty_branches(instance);
}

void TlbSet::flush_all() {
    ++flushes_;
    empty_shared();
    for (auto& space : spaces_)
        for (auto& view : space.views)
            empty(view, false);
}

void TlbSet::flush_non_global() {
    ++flushes_;
    for (auto& space : spaces_)
        for (auto& view : space.views)
            empty(view, true);
}

void TlbSet::flush_pcid(std::uint16_t pcid) {
    ++flushes_;
    for (auto& space : spaces_)
        if (space.used && space.pcid == pcid)
            for (auto& view : space.views)
                empty(view, true);
}

void TlbSet::flush_page_in(Instance& instance, std::uint64_t linear, bool own) {
    TlbInstance& tlb = *instance.tlb;
    drop_stack(instance);
    std::uint64_t first = linear & kPage;
    std::size_t count = 1;
    if (test(instance.large, region_hash(linear))) {
        first = linear & ~std::uint64_t{0x1fffff};
        count = 512;
    }
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t page = first + i * 4096;
        const std::size_t index = TlbInstance::index(page);
        if (tlb.rtag[index] == page && (own || test(instance.global, index)))
            empty_entry(instance, index);
    }
    // An instruction may start on the page before and end on this one.
    if (count == 1 && !test(instance.code_pages, page_hash(linear)) &&
        !test(instance.code_pages, page_hash(linear - 4096)))
        return;
    give_up_shared(instance);
    const std::uint64_t length = (count + 1) * 4096;
    for (std::size_t i = 0; i < TlbInstance::kBranches; ++i)
        if (tlb.branches[i].tag - (first - 4096) < length)
            tlb.branches[i].tag = TlbInstance::empty_branch_tag(i);
    empty_far_links(instance, first - 4096, length);
}

void TlbSet::flush_page(std::uint16_t pcid, std::uint64_t linear) {
    ++flushes_;
    if (shared_huge_ || test(shared_regions_, region_hash(linear)))
        empty_shared();
    const bool maybe_global = global_in_half_.data()[half(linear)];
    for (auto& space : spaces_) {
        if (!space.used || (space.pcid != pcid && !maybe_global))
            continue;
        for (auto& view : space.views) {
            if (view.tlb == nullptr)
                continue;
            if (test(view.huge, gib_hash(linear)))
                empty(view, false);
            else
                flush_page_in(view, linear, space.pcid == pcid);
        }
    }
}

void TlbSet::flush_branches() {
    empty_shared();
    for (auto& space : spaces_)
        for (auto& view : space.views)
            if (view.tlb != nullptr) {
                give_up_shared(view);
                empty_branches(view);
            }
}

void TlbSet::note_written(Instance& instance, std::size_t index) {
    const TlbInstance& tlb = *instance.tlb;
    if (tlb.wtag[index] != TlbInstance::empty_tag(index))
        add(instance.written, host_hash(tlb.page_host[index]));
}

void TlbSet::drop_write(HostPages pages) {
    HostSet dropped{};
    for (const std::byte* const page : pages)
        add(dropped, host_hash(reinterpret_cast<std::uint64_t>(page)));
    for (auto& space : spaces_)
        for (auto& view : space.views)
            if (view.tlb != nullptr && overlap(view.written, dropped))
                drop_write_in(view, pages, dropped);
}

void TlbSet::drop_write_in(Instance& instance, HostPages pages, const HostSet& dropped) {
    drop_stack(instance);
    clear(instance.written);
    for (std::uint32_t i = 0; i < instance.touched_count; ++i) {
        const std::size_t index = instance.touched[i];
        TlbInstance& tlb = *instance.tlb;
        const std::uint64_t host = tlb.page_host[index];
        if (test(dropped, host_hash(host)) &&
            std::ranges::find(pages, reinterpret_cast<const std::byte*>(host)) != pages.end())
            tlb.wtag[index] = TlbInstance::empty_tag(index);
        note_written(instance, index);
    }
}

void TlbSet::drop_all_writes() {
    for (auto& space : spaces_) {
        for (auto& view : space.views) {
            if (view.tlb == nullptr)
                continue;
            drop_stack(view);
            for (std::uint32_t i = 0; i < view.touched_count; ++i)
                view.tlb->wtag[view.touched[i]] = TlbInstance::empty_tag(view.touched[i]);
            clear(view.written);
        }
    }
}

} // namespace doppel::cpu::translator
