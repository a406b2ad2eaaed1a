// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/direct_users.hpp"

#include <sched.h>
#include <x86intrin.h>

#include <algorithm>
#include <cstring>

#include "base/log.hpp"
#include "cpu/x86/frontend/direct/page_scan.hpp"
#include "cpu/x86/frontend/direct/register_loop.hpp"
#include "cpu/x86/system/descriptor.hpp"
#include "cpu/x86/system/linear_memory.hpp"
#include "cpu/x86/system/segmentation.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

constexpr std::uint64_t kPageBytes = 4096, kPageOffset = kPageBytes - 1;
constexpr std::uint64_t kLongestInstruction = 15;
constexpr std::uint64_t kPcidBits = 0xfff; // of a key

// Cycles of a TSC that runs at two to four GHz.
constexpr std::uint64_t kMillisecond = 2'500'000;
constexpr std::int64_t kCredit = 24 * kMillisecond;
/// What users lose when the translator runs a page, without its branch caches.
constexpr std::int64_t kRefusal = kMillisecond / 2;
constexpr unsigned kSamples = 7; // of a user who computes
constexpr std::uint64_t kFirstWait = 20 * kMillisecond;
constexpr unsigned kMostDoublings = 8;

constexpr unsigned kLoops = 3; // until they are likely to last

constexpr std::size_t kMostRetired = 64;
constexpr std::uint64_t kSingleStep = 1 << 14; // DR6.BS

} // namespace

DirectUsers::DirectUsers(SystemContext& cx, int ram, std::uint64_t ram_pages, When when,
                         WatchCode watch, Executed executed, GuardedCalls& calls)
    : cx_{cx}, ram_{ram}, when_{when}, watch_{std::move(watch)}, executed_{std::move(executed)},
      calls_{calls}, code_marks_{ram_pages} {
    all_direct = when == When::Always;
}

DirectUsers::Space& DirectUsers::find_space(std::uint64_t key) {
    Space* oldest = &spaces_.front();
    for (auto& space : spaces_) {
        if (space.key == key)
            return space;
        if (space.last_use < oldest->last_use)
            oldest = &space;
    }
    take_others(*oldest);
    auto users = std::move(oldest->users);
    if (users != nullptr)
        users->start_over();
    *oldest = Space{};
    oldest->users = std::move(users);
    oldest->key = key;
    note();
    return *oldest;
}

void DirectUsers::note() {
    holds_pages_ = !code_.empty();
    direct_keys = {};
    std::size_t count = 0;
    for (const Space& space : spaces_)
        if (space.direct)
            direct_keys.at(count++) = space.key;
    for_all([this](const UserSpace& users) { holds_pages_ |= !users.empty(); });
}

bool DirectUsers::select(std::uint64_t key) {
    Space& space = find_space(key);
    current_ = &space;
    space.last_use = ++uses_;
    wants_pages = space.direct && !space.primed;
    if (when_ == When::Always && !space.direct && !impossible_)
        return start(space);
    return space.direct;
}

bool DirectUsers::interrupted(std::uint64_t key) {
    const std::uint64_t now = __rdtsc();
    if (sampled_key_ != key)
        samples_ = 0;
    else if (now - sampled_ < kMillisecond)
        return false;
    sampled_ = now;
    sampled_key_ = key;
    if (++samples_ < kSamples || impossible_)
        return false;
    Space& space = find_space(key);
    if (space.direct || now < space.not_before || is_looping() || !start(space))
        return false;
    current_ = &space;
    space.last_use = ++uses_;
    return true;
}

/// Of its own, or of the one that has not been used for longest.
bool DirectUsers::give_process(Space& space) {
    Space* oldest = nullptr;
    std::size_t count = 0;
    for (Space& other : spaces_) {
        if (other.users != nullptr && !other.users->stub().alive())
            retire(other);
        if (other.users == nullptr)
            continue;
        ++count;
        if (oldest == nullptr || other.last_use < oldest->last_use)
            oldest = &other;
    }
    if (space.users != nullptr)
        return true;
    if (count == kDirect) {
        oldest->direct = false;
        take_others(*oldest);
        space.users = std::move(oldest->users);
        space.users->start_over();
        return true;
    }
    auto stub = StubProcess::create(ram_);
    if (!stub) {
        impossible_ = true;
        base::log_info("users' code is translated throughout: {}", stub.error().message());
        return false;
    }
    round_trip_ = std::min(round_trip_, (*stub)->round_trip_cycles());
    space.users = std::make_unique<UserSpace>(std::move(*stub));
    return true;
}

bool DirectUsers::start(Space& space) {
    if (!give_process(space))
        return false;
    space.direct = wants_pages = true;
    space.primed = false;
    space.credit = kCredit;
    space.gains = space.balance = 0;
    ++counts_.begun;
    note();
    return true;
}

/// Its process is no more, or not as a new one is.
void DirectUsers::retire(Space& space) {
    space.direct = false;
    take_others(space);
    retired_.push_back(std::move(space.users));
    retired_.back()->stub().end();
    impossible_ = impossible_ || retired_.size() >= kMostRetired; // somebody plays with us
    note();
}

void DirectUsers::give_up(Space& space) {
    if (when_ == When::Always)
        return;
    ++counts_.given_up;
    space.direct = false;
    if (space.users != nullptr)
        space.users->stop_refusing();
    // Who comes near to gaining has parts that do gain, as with a program that now allocates and
    // now computes; they begin before it is clear that waiting was right.
    const bool worthwhile = space.balance > -space.gains / 3;
    space.failures = worthwhile ? 0 : std::min(space.failures + 1, kMostDoublings);
    space.not_before = worthwhile ? 0 : __rdtsc() + (kFirstWait << space.failures);
    note();
}

/// Programs that do not fit the caches take three to four times as long in translated code, small
/// loops twice as long: 2.75.
void DirectUsers::weigh(Space& space, std::uint64_t total, std::uint64_t ran) {
    const StubProcess& stub = space.users->stub();
    const bool refuses = stub.refuses_cpuid() || stub.refuses_tsc(); // which costs more
    const std::uint64_t round_trip = refuses ? stub.round_trip_cycles() : round_trip_;
    const std::uint64_t useful = ran - std::min(ran, round_trip);
    const auto gained = static_cast<std::int64_t>(useful * 7 / 4);
    const std::int64_t gain = gained - static_cast<std::int64_t>(total - useful);
    counts_.cycles += useful;
    space.gains += gained;
    space.balance += gain;
    const std::int64_t most = kCredit + std::clamp<std::int64_t>(space.balance / 4, 0, kCredit);
    space.credit = std::min(most, space.credit + gain);
    if (space.credit < 0)
        give_up(space);
}

/// What the process has is what Linux has given it; where the guest wants its users to have
/// something else they are translated.
bool DirectUsers::eligible() const {
    const CpuState& state = cx_.state;
    constexpr std::uint64_t kFlagsWanted = FLAG_IF;
    constexpr std::uint64_t kFlagsUnwanted =
        FLAG_TF | FLAG_NT | FLAG_RF | FLAG_AC | FLAG_ID | FLAG_IOPL | FLAG_VM | FLAG_VIF | FLAG_VIP;
    constexpr std::uint64_t kCr4Wanted = CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
    const auto data = [&](SegmentIndex segment) {
        const std::uint16_t selector = state.segment.at(segment).selector;
        return selector == 0 || selector == StubProcess::kSs;
    };
    return !current_->barred && state.cpl == 3 && cx_.code64() &&
           state.segment[Cs].selector == StubProcess::kCs &&
           state.segment[Ss].selector == StubProcess::kSs && data(Ds) && data(Es) &&
           state.segment[Fs].selector == 0 && state.segment[Gs].selector == 0 &&
           (state.cr0 & (CR0_TS | CR0_EM)) == 0 && (state.cr4 & kCr4Wanted) == kCr4Wanted &&
           (state.cr4 & CR4_PKE) == 0 && (state.debugctl & DEBUGCTL_BTF) == 0 && state.xcr0 == 7 &&
           (state.efer & EFER_SCE) != 0 &&
           (state.rflags & (kFlagsWanted | kFlagsUnwanted)) == kFlagsWanted &&
           state.segment[Fs].base < StubProcess::kEnd && state.segment[Gs].base < StubProcess::kEnd;
}

/// Whether the guest lets its users read the counter, and it is the host's.
bool DirectUsers::may_see_tsc() const {
    return host_tsc_ && host_tsc_offset_ + cx_.state.tsc_offset == 0 &&
           (cx_.state.cr4 & CR4_TSD) == 0;
}

StubProcess::Registers DirectUsers::registers() const {
    const CpuState& state = cx_.state;
    const auto selector = [&](SegmentIndex segment) { return state.segment.at(segment).selector; };
    return {.gpr = state.gpr,
            .rip = state.rip,
            .rflags = state.rflags,
            .fs_base = state.segment[Fs].base,
            .gs_base = state.segment[Gs].base,
            .cs = selector(Cs),
            .ss = selector(Ss),
            .ds = selector(Ds),
            .es = selector(Es),
            .fs = selector(Fs),
            .gs = selector(Gs)};
}

void DirectUsers::store(const StubProcess::Registers& registers) {
    constexpr std::uint64_t kUsers =
        kArithmeticFlags | FLAG_DF | FLAG_TF | FLAG_NT | FLAG_AC | FLAG_ID;
    CpuState& state = cx_.state;
    state.gpr = registers.gpr;
    state.rip = registers.rip;
    if (((state.rflags ^ registers.rflags) & (FLAG_AC | FLAG_TF)) != 0)
        cx_.changes |= change::kMode | change::kEvents;
    state.rflags = (state.rflags & ~kUsers) | (registers.rflags & kUsers);
    adopt_selectors(registers);
    state.segment[Fs].base = registers.fs_base;
    state.segment[Gs].base = registers.gs_base;
}

/// Users may load others, which are the host's there: they get what the guest's tables say.
void DirectUsers::adopt_selectors(const StubProcess::Registers& registers) {
    CpuState& state = cx_.state;
    const std::array<std::pair<SegmentIndex, std::uint16_t>, 5> loaded{{{Ss, registers.ss},
                                                                        {Ds, registers.ds},
                                                                        {Es, registers.es},
                                                                        {Fs, registers.fs},
                                                                        {Gs, registers.gs}}};
    for (const auto& [segment, selector] : loaded)
        if (state.segment.at(segment).selector != selector)
            (void)load_segment(cx_, segment, selector);
    if (state.segment[Cs].selector == registers.cs)
        return;
    current_->barred = true; // not all that 32-bit code may do is seen
    Descriptor descriptor;
    if (find_descriptor(cx_, registers.cs, descriptor) == Lookup::Found && descriptor.is_code() &&
        descriptor.present() && descriptor.dpl() == 3)
        state.segment[Cs] = unpack(descriptor, registers.cs);
    cx_.changes |= change::kMode;
}

/// `arrived`: they come from elsewhere. False: users of this address space cannot run directly.
bool DirectUsers::prepare(Space& space, bool arrived) {
    if (!eligible())
        return false;
    drop_written();
    // The guest has something where the process has its own.
    memory::Gpa gpa;
    const std::uint64_t own = space.users->stub().own();
    for (std::uint64_t page = own; page < own + StubCode::kBytes; page += kPageBytes)
        if (translate_quietly(cx_, page, gpa))
            return false;
    if (const std::uint64_t awaited = std::exchange(space.awaited, 0); awaited != 0)
        map_missed(space, awaited, Wanted::Any);
    enter_guarded(cx_.state.rip);
    if (arrived)
        look_at_stack(space);
    drop_guarded();
    if (!may_see_tsc())
        space.users->refuse_tsc();
    if (sync(*space.users) || sync(*space.users)) // twice: there were too many pages
        return true;
    retire(space);
    return false;
}

void DirectUsers::drop_written() {
    if (!code_written_.exchange(false))
        return;
    std::vector<std::uint64_t> pages;
    {
        const std::scoped_lock lock{written_mutex_};
        pages.swap(written_);
    }
    for (const std::uint64_t page : pages) {
        for_all([page](UserSpace& users) { users.drop_code(page); });
        code_.erase(page);
        code_marks_.clear(page);
    }
}

/// Whether running directly gains nothing where rip is.
bool DirectUsers::is_looping() const {
    const std::byte* const page = bytes_at(cx_.state.rip & ~kPageOffset);
    return when_ != When::Always && page != nullptr && cx_.code64() &&
           in_register_loop({reinterpret_cast<const std::uint8_t*>(page), kPageBytes},
                            cx_.state.rip & kPageOffset);
}

void DirectUsers::note_loop(Space& space, bool poked, std::uint64_t ran) const {
    space.looping = poked && ran >= kMillisecond && is_looping() ? space.looping + 1 : 0;
    space.loop_at = 0;
}

/// Whether they have been interrupted in such loops so often that they are in for another one.
bool DirectUsers::goes_on_looping(Space& space) const {
    if (space.looping < kLoops)
        return false;
    if (cx_.state.rip == space.loop_at) // translated code is interrupted where the loop begins
        return true;
    space.loop_at = is_looping() ? cx_.state.rip : 0;
    return space.loop_at != 0;
}

UserRunner::Next DirectUsers::run(const std::atomic<std::uint64_t>& attention, std::uint64_t calm) {
    Space& space = *current_;
    if (goes_on_looping(space))
        return Next::Translate;
    for (bool arrived = true;; arrived = false) {
        const std::uint64_t begun = __rdtsc();
        if (!prepare(space, arrived)) {
            give_up(space);
            return Next::Translate;
        }
        holds_pages_ = true;
        auto values = registers();
        StubProcess& stub = space.users->stub();
        ++visits_;
        running_.store(&stub);
        const std::uint64_t from = __rdtsc();
        const auto result = stub.run(values, cx_.state.xsave, attention, calm);
        const std::uint64_t to = __rdtsc();
        running_.store(nullptr);
        using enum StubProcess::Stop;
        if (result.stop == NotRun)
            return Next::Around;
        if (result.stop == Dead || result.stop == Lost) {
            base::log_warning("a process in which users' code ran was killed");
            retire(space);
            return result.stop == Dead ? Next::Around : Next::Lost;
        }
        ++counts_.runs;
        store(values);
        bool again = false;
        const Next next = serve(result, again);
        note_loop(space, result.stop == Poked, to - from);
        weigh(space, __rdtsc() - begun, to - from);
        // The flag stays in the process, where nobody else's shall find it.
        if ((values.rflags & FLAG_ID) != 0 || !stub.alive())
            retire(space);
        if (!again || !space.direct)
            return next;
    }
}

UserRunner::Next DirectUsers::serve(const StubProcess::Result& result, bool& again) {
    CpuState& state = cx_.state;
    using enum StubProcess::Stop;
    switch (result.stop) {
    case Poked: return Next::Around;
    case Syscall:
        ++counts_.calls;
        state.rip -= 2;
        return Next::Translate;
    case Memory: {
        ++counts_.memory;
        bool translate = false;
        again = serve_memory(*current_, result.address, translate);
        return translate ? Next::Translate : again ? Next::Around : Next::Interpret;
    }
    case Stepped:
        state.pending_debug |= kSingleStep;
        cx_.changes |= change::kEvents;
        return Next::Around;
    case Refused:
        if (enter_guarded(state.rip))
            return Next::Translate;
        note_instruction(state.rip);
        look_again();
        if (current_->users->stub().refuses_tsc() && is_rdtscp())
            current_->users->refuse_tsc(); // on and on
        break;
    default: break;
    }
    ++counts_.other;
    return Next::Interpret;
}

/// Whether that is the instruction at rip, without prefixes as it always is.
bool DirectUsers::is_rdtscp() const {
    constexpr std::array<std::uint8_t, 3> kRdtscp{0x0f, 0x01, 0xf9};
    std::array<std::uint8_t, 3> code{};
    return read(cx_.state.rip, code) && code == kRdtscp;
}

/// In code whose writes are told of, for surely_begin().
void DirectUsers::note_instruction(std::uint64_t rip) {
    constexpr std::size_t kMost = 64;
    memory::Gpa gpa;
    if (!translate_quietly(cx_, rip, gpa) || cx_.ram.find(gpa.value) == nullptr)
        return;
    const std::uint64_t number = cx_.ram.page_number(cx_.ram.state(gpa.value));
    const auto offset = static_cast<std::uint16_t>(rip & kPageOffset);
    const auto known = code_.find(number);
    if (known == code_.end())
        return;
    Places& seen = known->second.seen;
    if (seen.size() < kMost && std::ranges::find(seen, offset) == seen.end())
        seen.push_back(offset);
}

/// At the end of a page there may be half an instruction of which the other half was not known when
/// the page was read.
void DirectUsers::look_again() {
    const std::uint64_t rip = cx_.state.rip, behind = (rip | kPageOffset) + 1;
    memory::Gpa here, there;
    if (behind - rip >= kLongestInstruction || !translate_quietly(cx_, rip, here) ||
        !translate_quietly(cx_, behind, there) || cx_.ram.find(here.value) == nullptr)
        return;
    const std::uint64_t number = cx_.ram.page_number(cx_.ram.state(here.value));
    const auto known = code_.find(number);
    if (known == code_.end() ||
        !std::ranges::binary_search(known->second.secretive,
                                    static_cast<std::uint16_t>(rip & kPageOffset)))
        return;
    const auto *const first = cx_.ram.host(here.value), *const second = cx_.ram.host(there.value);
    if (first == nullptr || second == nullptr)
        return;
    std::array<std::uint8_t, 2 * kLongestInstruction> code{};
    std::memcpy(code.data(), first, behind - rip);
    std::memcpy(code.data() + (behind - rip), second, kLongestInstruction);
    if (is_secretive(code))
        return;
    code_.erase(known);
    for_all([number](UserSpace& users) { users.drop_code(number); });
}

/// Maps what was missed. False: only the instruction itself can tell what is to happen.
bool DirectUsers::serve_memory(Space& space, std::uint64_t address, bool& translate) {
    UserSpace& users = *space.users;
    const std::uint64_t rip = cx_.state.rip;
    const bool again_here = rip == space.missed_rip;
    const bool repeated = again_here && address == space.missed_at;
    space.missed_at = space.missed_rip = 0;
    const UserSpace::Page* const known = users.find(address);
    if (repeated) {
        users.drop(address);
        return false;
    }
    const bool fetch = address - rip < kLongestInstruction &&
                       (known == nullptr || !UserSpace::is_code(known->rights));
    // Half of it may take breakpoints from the other half, and so on.
    constexpr unsigned kMany = 4;
    space.fetches = fetch && again_here ? space.fetches + 1 : 0;
    if (space.fetches == kMany)
        return false;
    const auto wanted = fetch ? Wanted::Code : known != nullptr ? Wanted::Write : Wanted::Any;
    const bool mapped = map_missed(space, address, wanted);
    if (fetch)
        note_instruction(rip);
    if (mapped) {
        space.missed_at = address;
        space.missed_rip = rip;
        return true;
    }
    memory::Gpa gpa;
    translate = fetch && translate_quietly(cx_, address, gpa);
    if (translate) {
        ++counts_.refused;
        space.credit -= kRefusal;
        space.balance -= kRefusal;
    } else if (!fetch) {
        space.awaited = address;
    }
    return false;
}

void DirectUsers::flush(const TlbFlush& flush) {
    // A user's page may be global: then it is everybody's.
    if (flush.kind == TlbFlush::Kind::Page)
        return for_all([&](UserSpace& users) { users.doubt(flush.linear); });
    for (auto& space : spaces_)
        if (flush.kind != TlbFlush::Kind::Pcid || (space.key & kPcidBits) == flush.pcid)
            for_all_of(space, [](UserSpace& users) { users.doubt_all(); });
}

void DirectUsers::drop_write(const std::byte* host_page) {
    for (std::size_t i = 0; i < cx_.ram.count; ++i) {
        const auto& region = cx_.ram.regions.at(i);
        const auto offset = static_cast<std::uint64_t>(host_page - region.host);
        if (offset < region.size_bytes)
            for_all([&](UserSpace& users) {
                users.drop_write(cx_.ram.page_number(region.states[offset >> 12]));
            });
    }
}

void DirectUsers::drop_all_writes() {
    for_all([](UserSpace& users) { users.drop_all_writes(); });
}

void DirectUsers::drop_code() {
    for_all([](UserSpace& users) { users.drop_all_code(); });
    code_.clear(); // writes are not told of any more
}

void DirectUsers::poke() noexcept {
    if (StubProcess* const stub = running_.load(); stub != nullptr)
        stub->poke();
}

void DirectUsers::wait_until_out() const noexcept {
    const std::uint64_t visit = visits_.load();
    while (running_.load() != nullptr && visits_.load() == visit)
        ::sched_yield();
}

bool DirectUsers::code_written(std::uint64_t ram_page) noexcept {
    if (!code_marks_.test(ram_page))
        return false;
    const std::scoped_lock lock{written_mutex_};
    written_.push_back(ram_page);
    code_written_.store(true);
    return true;
}

} // namespace doppel::cpu::x86::frontend
