// SPDX-License-Identifier: Apache-2.0
/// Why translated code came back, and what is done about it. Functions that return true have set
/// header.resume (and r13, r14): translated code goes on there. Otherwise the loop in run() starts
/// over at state.rip, unless `leave` is set.
#include "cpu/x86/frontend/dispatch/dispatcher.hpp"

#include <bit>

namespace doppel::cpu::x86::frontend {

using translator::Block;
using translator::TlbInstance;

namespace {

constexpr std::uint64_t kPageOffset = 0xfff;

} // namespace

Site Dispatcher::site() const {
    Site at;
    __builtin_memcpy(&at, reinterpret_cast<const void*>(site_address()), sizeof at);
    return at;
}

bool Dispatcher::resume_at(std::uint64_t address) {
    frame_.header.resume = address;
    return true;
}

/// Whether the instruction at rip lies in this page. Others may have dropped its blocks since we
/// came into this one, whereupon it is no code page any more; but what this block still has of the
/// old bytes must not survive its own stores. So these keep going through the interpreter, behind
/// which the next block is looked for anew.
bool Dispatcher::runs_in(std::uint64_t gpa_page) {
    CodePage page;
    return code_page(cx_, cx_.state.rip, page) && (page.gpa.value & ~kPageOffset) == gpa_page;
}

/// Puts the page of `linear` into the TLB. False and not `fault`: it cannot be there for this kind
/// of access (MMIO, code, …); `host` is then nullptr for MMIO.
bool Dispatcher::fill(std::uint64_t linear, bool write, std::byte*& host, bool& fault) {
    ++misses_;
    Translation to;
    const Privilege privilege = data_privilege(cx_);
    host = nullptr;
    fault = !translate(cx_, linear, write ? AccessType::Write : AccessType::Read, privilege, to);
    if (fault)
        return false;
    const std::uint64_t gpa = to.gpa.value & ~kPageOffset;
    const RamView::Region* const region = cx_.ram.find(gpa);
    if (region == nullptr)
        return false;
    host = region->host + (gpa - region->base);
    const std::uint16_t permissions = allowed(cx_, to);
    const bool writable = (permissions & permission(AccessType::Write, privilege)) != 0 &&
                          !runs_in(gpa) &&
                          cx_.ram.may_keep_writing(region->states[(gpa - region->base) >> 12]);
    if (write && !writable)
        return false;
    tlbs_.insert({.linear = linear,
                  .host = host,
                  .writable = writable,
                  .global = to.global,
                  .page_shift = to.page_shift});
    return true;
}

const CheckSite& Dispatcher::shared_check() {
    const std::uint32_t behind = frame_.header.exit_site;
    KnownCheck& known = known_checks_.data()[behind % known_checks_.size()];
    if (known.behind != behind) {
        vectors_.store();
        known = {.behind = behind, .site = &cold_.find_check(stubs_.base + behind)};
    }
    return *known.site;
}

Dispatcher::FailedCheck Dispatcher::failed_check() const {
    const Site at = site();
    const std::uint64_t begin = site_address() - at.distance();
    return {.site = at, .again = begin, .passed = begin + at.extra};
}

bool Dispatcher::serve_check(Result& result, bool& leave) {
    const CheckSite& shared = shared_check();
    const FailedCheck check{.site = shared.site,
                            .again = site_address() - CheckSite::kCallBytes,
                            .passed = site_address(),
                            .shared = &shared};
    switch (shared.of) {
    case CheckSite::Of::Access: return serve_miss(check, result, leave);
    case CheckSite::Of::Group: return serve_group_miss(check, result, leave);
    default: return serve_stack_miss(check, result, leave);
    }
}

bool Dispatcher::check_again(const FailedCheck& check, std::uint64_t linear) {
    frame_.header.resume_r13 = linear;
    return resume_at(check.again);
}

/// Translated code is left for good at a shared check: only now does it matter what the flags are.
/// What computes them is code, which runs on the guest's registers and comes back at once.
void Dispatcher::recover_flags(const FailedCheck& check) {
    if (check.shared == nullptr || check.shared->flags == FlagPlace::Slot)
        return;
    FrameHeader& header = frame_.header;
    const bool made = check.shared->flags == FlagPlace::Made;
    header.resume = reinterpret_cast<std::uint64_t>(stubs_.base) +
                    (made ? header.flag_maker : check.shared->maker);
    header.resume_r13 = static_cast<std::uint64_t>(Exit::Check);
    stubs_.enter(&cx_.state);
    cx_.state.rflags = unpack_flags(cx_.state.rflags, header.flags);
}

/// A load from two pages or from a device: its bytes are collected in frame_.bounce, and the
/// instruction is made to read there.
bool Dispatcher::bounce(const FailedCheck& check, std::uint64_t linear) {
    const Site& at = check.site;
    if (!read_linear(cx_, linear, frame_.bounce.data(), at.size, data_privilege(cx_)))
        return false;
    const auto host = reinterpret_cast<std::uint64_t>(frame_.bounce.data());
    const bool single = (at.bits & Site::kSingle) != 0;
    frame_.header.resume_r13 = single ? host : linear;
    frame_.header.resume_r14 = host - linear;
    if ((at.bits & Site::kKnown) != 0) // the access is at that of the page
        frame_.header.resume_r13 = frame_.header.resume_r14 = host - (linear & kPageOffset);
    return resume_at(check.passed);
}

bool Dispatcher::serve_miss(const FailedCheck& check, Result& result, bool& leave) {
    const Site& at = check.site;
    const TlbInstance& tlb = *tlbs_.current();
    const bool write = (at.bits & Site::kWrite) != 0;
    const std::size_t index = frame_.header.exit_r14;
    const bool locked = (at.bits & Site::kTurned) != 0;
    const std::uint64_t difference =
        locked ? std::rotl(frame_.header.exit_r13, std::countr_zero(unsigned{at.size}))
               : frame_.header.exit_r13;
    const bool known = (at.bits & Site::kKnown) != 0;
    const std::uint64_t linear =
        known ? difference : difference ^ (write ? tlb.wtag.data() : tlb.rtag.data())[index];
    cx_.state.rip = site_rip(at);
    const bool exists = addressable(linear, at.size);
    const bool crosses = (linear & kPageOffset) + at.size > 4096;
    bool fault = false;
    std::byte* host = nullptr;
    const bool careful = (at.bits & Site::kCareful) != 0;
    const bool misaligned = locked && (linear & (at.size - 1u)) != 0;
    if (misaligned) { // perhaps in two cache lines
        if (compare_first())
            return false;
        leave = !interpret(result);
        return false;
    }
    if (exists && !crosses && fill(linear, write, host, fault))
        return check_again(check, linear);
    // With a meter, what touches a device ends the block: it may ask for an interrupt.
    const bool may_bounce = !fault && exists && !write && !careful && meter_ == nullptr;
    recover_flags(check);
    if (fault)
        return serve_fault(check, result, leave);
    if (may_bounce) {
        if (bounce(check, linear))
            return true;
        leave = !deliver(result);
        return false;
    }
    if (compare_first())
        return false;
    if ((at.bits & Site::kVector) != 0)
        vectors_.store();
    leave = !interpret(result);
    return false;
}

/// The page at the site cannot be accessed, which cx_.fault tells.
bool Dispatcher::serve_fault(const FailedCheck& check, Result& result, bool& leave) {
    if ((check.site.bits & Site::kCareful) == 0) {
        leave = !deliver(result);
        return false;
    }
    if (compare_first())
        return false;
    if ((check.site.bits & Site::kVector) != 0)
        vectors_.store();
    leave = !interpret(result);
    return false;
}

bool Dispatcher::serve_stack_miss(const FailedCheck& check, Result& result, bool& leave) {
    const Site& at = check.site;
    const std::uint64_t rsp = cx_.state.gpr.data()[Rsp];
    const std::uint64_t low = rsp + static_cast<std::uint64_t>(std::int64_t{at.low});
    const std::uint64_t first = rsp + static_cast<std::uint64_t>(std::int64_t{at.first});
    cx_.state.rip = site_rip(at);
    const bool write = (at.bits & Site::kWrite) != 0;
    TlbInstance& tlb = *tlbs_.current();
    const std::size_t index = TlbInstance::index(low);
    const std::uint64_t page = low & ~kPageOffset;
    if ((low & kPageOffset) + at.extra <= 4096 &&
        (code32_ ? is_stack_page32(low) : is_canonical(low))) {
        if (tlb.wtag.data()[index] != page) {
            std::byte* host = nullptr;
            bool fault = false;
            fill(first, write, host, fault);
            if (fault) {
                recover_flags(check);
                return serve_fault(check, result, leave);
            }
        }
        if (tlb.wtag.data()[index] == page) {
            tlb.stack_page = page;
            tlb.stack_addend = tlb.addend.data()[index];
            return check_again(check, low);
        }
    }
    recover_flags(check);
    return enter_variant(leave, result);
}

/// From the instruction at rip on, each access is checked by itself.
bool Dispatcher::enter_variant(bool& leave, Result& result) {
    if (observed_) { // the next block begins here
        variant_ = executed_ == observed_from_ ? mode::kEachChecked : 0;
        return false;
    }
    return enter_rip(cx_.state.rip, mode::kEachChecked, leave, result);
}

bool Dispatcher::serve_group_miss(const FailedCheck& check, Result& result, bool& leave) {
    const Site& at = check.site;
    const bool write = (at.bits & Site::kWrite) != 0;
    const TlbInstance& tlb = *tlbs_.current();
    const std::uint64_t* const tags = write ? tlb.wtag.data() : tlb.rtag.data();
    const std::uint64_t low = frame_.header.exit_r13 ^ tags[frame_.header.exit_r14];
    cx_.state.rip = site_rip(at);
    if (is_canonical(low) && (low & kPageOffset) + at.extra <= 4096) {
        std::byte* host = nullptr;
        bool fault = false;
        fill(low, write && (at.bits & Site::kEarly) == 0, host, fault);
        if (!fault && tags[TlbInstance::index(low)] == (low & ~kPageOffset))
            return check_again(check, low);
    }
    recover_flags(check);
    return enter_variant(leave, result); // which will find the same, and whose it is
}

/// The interpreter is to execute the next instruction. True: not now, what the observed block did
/// before is compared first. Then the block begins with that instruction, and is not observed.
bool Dispatcher::compare_first() {
    if (!observed_)
        return false;
    if (executed_ != observed_from_)
        return true;
    observed_ = false;
    return false;
}

/// Translated code starts over at the block's entry.
bool Dispatcher::resume_block(const std::uint8_t* entry) {
    suspended_ = 0;
    return resume_at(reinterpret_cast<std::uint64_t>(entry));
}

/// To the block at `rip`; what cannot be translated is interpreted.
bool Dispatcher::enter_rip(std::uint64_t rip, std::uint32_t variant, bool& leave, Result& result) {
    cx_.state.rip = rip;
    bool fault = false;
    const std::uint8_t* const entry = find_entry(variant, fault);
    if (entry != nullptr)
        return resume_block(entry);
    if (fault)
        leave = !deliver(result);
    return false; // run() finds no entry either and interprets
}

bool Dispatcher::serve_link(Result& result, bool& leave) {
    const Site at = site();
    cx_.state.rip = site_rip(at);
    const bool to_variant = (at.bits & Site::kVariant) != 0;
    if (unlinked_)
        return to_variant && enter_variant(leave, result);
    bool fault = false;
    const std::uint64_t evictions = cache_.evictions();
    CodePage page;
    Block* target = find_block(cx_.state.rip, to_variant ? mode::kEachChecked : 0, page, fault);
    if (target == nullptr)
        return false; // run() will see the same and deal with it
    const bool waits = (at.bits & Site::kBackward) != 0 && loops_ && !target->loop && !to_variant &&
                       visit_loop(target, page.host + (cx_.state.rip & kPageOffset));
    const bool refused = chaos_.enabled() && !chaos_.may_link();
    if (link_ && !waits && !refused && target->key.second_page == 0 &&
        cache_.evictions() == evictions) {
        vectors_.store();
        cold_.link(at, site_address(), *target);
    }
    if (!to_variant && chaos_.enabled() && chaos_.goes_around())
        return false;
    frame_.header.resume_r13 = cx_.state.rip;
    return resume_block(target->far_entry());
}

/// A jump back to `head`, which may be replaced. True: it stays unlinked, to be counted.
bool Dispatcher::visit_loop(Block*& head, const std::byte* host) {
    using enum LoopProfile::Verdict;
    auto verdict = loop_profile_.visit(head->key, cx_.state.gpr);
    if (verdict == Unknown) {
        LoopCounter counter;
        vectors_.store();
        if (!cold_.find_loop(*head, host, counter))
            return false;
        loop_profile_.begin(head->key, counter);
        verdict = loop_profile_.visit(head->key, cx_.state.gpr);
    }
    if (verdict != Hot)
        return verdict == Wait;
    vectors_.store();
    if (Block* const loop = cold_.make_loop(*head, cx_.state.rip, host); loop != nullptr)
        head = loop;
    return false;
}

bool Dispatcher::serve_branch(Exit why, Result& result, bool& leave) {
    const std::uint64_t target = frame_.header.exit_r13;
    if (!is_canonical(target) && why == Exit::Branch) {
        // The instruction itself faults: back to before it, and let the interpreter find out.
        if ((site().bits & Site::kLanding) != 0)
            frame_.header.exit_site = frame_.header.return_site;
        const Site at = site();
        cx_.state.rip = site_rip(at);
        const bool call = (at.bits & Site::kCall) != 0;
        cx_.state.gpr.data()[Rsp] += call ? at.extra : -std::uint64_t{at.extra};
        if (compare_first())
            return false;
        leave = !interpret(result);
        return false;
    }
    frame_.header.shared_branch_wait = Stubs::kSharedBranchWait;
    if (why == Exit::Stale) {
        tlbs_.drop_branch(target);
        tlbs_.drop_far_link(static_cast<std::uint32_t>(frame_.header.exit_site), target);
    }
    const bool to_runner = runs_users_ && cx_.state.cpl == 3;
    if (unlinked_ || to_runner || (chaos_.enabled() && chaos_.goes_around())) {
        cx_.state.rip = target;
        return false;
    }
    const Site at = why == Exit::Branch ? site() : Site{}; // before it can be evicted
    const std::uint64_t evictions = cache_.evictions();
    if (!enter_rip(target, 0, leave, result))
        return false;
    if ((at.bits & Site::kFarLink) != 0)
        enter_far_link(at.back);
    if ((at.bits & Site::kLanding) != 0 && cache_.evictions() == evictions)
        enter_landing(at, site_address());
    return true;
}

/// It goes where translated code will be resumed.
void Dispatcher::enter_far_link(std::uint16_t number) {
    if (!cache_branches_ || (chaos_.enabled() && !chaos_.may_link()))
        return;
    tlbs_.insert_far_link(number,
                          {.rip = cx_.state.rip,
                           .host = reinterpret_cast<const std::uint8_t*>(frame_.header.resume)});
}

/// Of the call behind which translated code will be resumed, unless the return was not its. Mostly
/// another view knows it, or this one did until it was flushed: then it is linked.
void Dispatcher::enter_landing(const Site& at, std::uint64_t address) {
    if (!cache_branches_ || at.distance() == 0 ||
        ((cx_.state.rip ^ at.page_offset) & kPageOffset) != 0 ||
        (chaos_.enabled() && !chaos_.may_link()))
        return;
    const auto* const host = reinterpret_cast<const std::uint8_t*>(frame_.header.resume);
    const auto* const place = reinterpret_cast<const std::uint8_t*>(address - at.distance());
    if (!translator::CodeCache::leads_to(place, host)) {
        vectors_.store();
        if (!cold_.link_landing(at, address, host))
            return;
    }
    tlbs_.insert_landing(at.landing(), cx_.state.rip);
}

void Dispatcher::forget_landings() {
    if (paired_returns_)
        for (std::size_t i = 0; i < Frame::kLandings; ++i)
            frame_.landings.data()[i] = stubs_.landing;
}

bool Dispatcher::serve_host_fault(Result& result, bool& leave) {
    const std::uint64_t info = frame_.header.exit_r13;
    cx_.state.rip = frame_.header.page_va + (info & kPageOffset);
    if ((info & 0x1000) != 0)
        return false; // a poll: attend() sees to it
    if (compare_first())
        return false;
    vectors_.store();
    leave = !interpret(result);
    return false;
}

bool Dispatcher::serve(Exit why, Result& result, bool& leave) {
    ++exits_[static_cast<std::size_t>(why)];
    switch (why) {
    case Exit::Miss:
        return (site().bits & Site::kGroup) != 0 ? serve_group_miss(failed_check(), result, leave)
                                                 : serve_miss(failed_check(), result, leave);
    case Exit::StackMiss: return serve_stack_miss(failed_check(), result, leave);
    case Exit::Check: return serve_check(result, leave);
    case Exit::Link: return serve_link(result, leave);
    case Exit::Branch:
    case Exit::Stale: return serve_branch(why, result, leave);
    case Exit::Attention: cx_.state.rip = site_rip(site()); return false;
    case Exit::HostFault: return serve_host_fault(result, leave);
    case Exit::Budget:
        cx_.state.rip = site_rip(site());
        near_limit_ = !curtailed_;
        return false;
    default: break;
    }
    const Site at = site();
    cx_.state.rip = site_rip(at);
    if (at.extra == static_cast<std::uint16_t>(Op::Pause)) {
        frame_.pauses_left = kPausesBetweenYields;
        cx_.board.yield();
    }
    if (at_limit() || compare_first())
        return false;
    ++interpreted_[at.extra];
    if ((at.bits & Site::kVector) != 0)
        vectors_.store();
    leave = !interpret(result);
    return false;
}

} // namespace doppel::cpu::x86::frontend
