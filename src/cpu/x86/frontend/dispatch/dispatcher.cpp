// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/dispatch/dispatcher.hpp"

#include "cpu/x86/decoder/decoder.hpp"
#include "cpu/x86/frontend/dispatch/flat_code.hpp"
#include "cpu/x86/system/gates.hpp"

namespace doppel::cpu::x86::frontend {

using translator::Block;
using translator::BlockKey;
using translator::TlbInstance;
using translator::View;

namespace {

constexpr std::uint64_t kPageOffset = 0xfff;

View view_of(const SystemContext& cx) {
    switch (data_privilege(cx)) {
    case Privilege::User: return cx.code64() ? View::User : View::User32;
    case Privilege::Supervisor: return View::Kernel;
    default: return View::KernelAc;
    }
}

} // namespace

void Dispatcher::state_changed() {
    x86::state_changed(cx_);
    flush_all();
    service_ = event_hint_ = true;
}

void Dispatcher::flush_tlb(const TlbFlush& flush) noexcept {
    if (runner_ != nullptr && runner_->holds_pages()) {
        vectors_.store();
        runner_->flush(flush);
    }
    switch (flush.kind) {
    case TlbFlush::Kind::All: tlbs_.flush_all(); break;
    case TlbFlush::Kind::NonGlobal: tlbs_.flush_non_global(); break;
    case TlbFlush::Kind::Pcid: tlbs_.flush_pcid(flush.pcid); break;
    case TlbFlush::Kind::Page: tlbs_.flush_page(flush.pcid, flush.linear); break;
    }
}

void Dispatcher::flush_all() { flush_tlb({.kind = TlbFlush::Kind::All}); }

void Dispatcher::drop_write(translator::TlbSet::HostPages pages) {
    tlbs_.drop_write(pages);
    if (runner_ != nullptr && runner_->holds_pages())
        for (const std::byte* const page : pages)
            runner_->drop_write(page);
}

void Dispatcher::drop_all_writes() {
    tlbs_.drop_all_writes();
    if (runner_ != nullptr && runner_->holds_pages())
        runner_->drop_all_writes();
}

void Dispatcher::drop_code() {
    tlbs_.flush_branches();
    forget_landings();
    known_checks_.fill({});
    if (runner_ != nullptr && runner_->holds_pages())
        runner_->drop_code();
}

bool Dispatcher::translatable() const {
    const CpuState& state = cx_.state;
    if ((state.cpl != 0 && state.cpl != 3) || !(cx_.code64() || is_flat32(cx_)))
        return false;
    const bool alignment_checks =
        state.cpl == 3 && (state.cr0 & CR0_AM) != 0 && (state.rflags & FLAG_AC) != 0;
    return !alignment_checks;
}

void Dispatcher::update_mode() {
    const CpuState& state = cx_.state;
    translatable_ = translatable();
    const std::uint64_t permission_bits =
        (state.cr0 & CR0_WP) | (state.cr4 & (CR4_SMEP | CR4_SMAP)) | (state.efer & EFER_NXE) << 32;
    if (permission_bits != permission_bits_) {
        permission_bits_ = permission_bits;
        flush_all();
    }
    if (!translatable_)
        return;
    const bool no_fpu = (state.cr0 & (CR0_EM | CR0_TS)) != 0;
    std::uint32_t features = no_fpu ? 0 : mode::kX87;
    if (!no_fpu && (state.cr4 & CR4_OSFXSR) != 0)
        features |= mode::kSse;
    if ((state.cr0 & CR0_TS) == 0 && (state.cr4 & CR4_OSXSAVE) != 0 && (state.xcr0 & 6) == 6)
        features |= mode::kAvx;
    if (host_tsc_ && observer_ == nullptr && (state.cr4 & CR4_TSD) == 0)
        features |= mode::kTsc;
    if (meter_ != nullptr)
        features |= mode::kCount;
    if (features != features_) {
        features_ = features;
        tlbs_.flush_branches();
    }
    update_fast_calls();
    update_code_size();
    update_guards();
    select_tlb();
}

/// Views of a supervisor are entered by translated SYSCALLs, too, and hold branches of 64-bit code
/// whenever that can happen. Stack pages of 32-bit code keep a distance from the ends of 4 GiB.
void Dispatcher::update_code_size() {
    code32_ = !cx_.code64();
    const bool supervisor = cx_.state.cpl != 3;
    if (supervisor32_ == code32_ || (code32_ && !supervisor))
        return;
    supervisor32_ = code32_;
    flush_all();
}

void Dispatcher::update_guards() {
    for (std::size_t i = 0; i < frame_.segment_guard.size(); ++i)
        frame_.segment_guard.data()[i] =
            cx_.state.segment.data()[Fs + i].reaches_everywhere() ? 0 : Frame::kNotFlat;
}

/// Of code that is not 64-bit code.
void Dispatcher::update_segments() {
    if (translatable_ == translatable())
        update_guards();
    else
        update_mode();
}

bool Dispatcher::addressable(std::uint64_t linear, std::uint64_t bytes) const {
    const std::uint64_t last = linear + bytes - 1;
    return code32_ ? last >= linear && last <= 0xffff'ffff
                   : is_canonical(linear) && is_canonical(last);
}

void Dispatcher::select_tlb() {
    const CpuState& state = cx_.state;
    const std::uint16_t pcid =
        (state.cr4 & CR4_PCIDE) != 0 ? static_cast<std::uint16_t>(state.cr3 & 0xfff) : 0;
    TlbInstance* const tlb = tlbs_.select(pcid, view_of(cx_));
    const auto value = reinterpret_cast<std::uint64_t>(tlb) + TlbInstance::kControl;
    frame_.header.tlb_register = value;
    if (runner_ != nullptr)
        select_users();
}

std::uint64_t Dispatcher::space_key() const {
    constexpr std::uint64_t kAddress = 0x000f'ffff'ffff'f000;
    const CpuState& state = cx_.state;
    return (state.cr3 & kAddress) | ((state.cr4 & CR4_PCIDE) != 0 ? state.cr3 & 0xfff : 0);
}

/// The address space has changed, or perhaps not.
void Dispatcher::select_users() {
    const std::uint64_t key = space_key();
    bool direct = runner_->all_direct;
    for (const std::uint64_t known : runner_->direct_keys)
        direct |= known == key;
    if (direct && key != 0) {
        vectors_.store();
        direct = runner_->select(key);
    }
    runs_users_ = direct && key != 0;
}

/// They run directly from now on: there must be no branch by which they would not.
void Dispatcher::begin_users() {
    runs_users_ = true;
    tlbs_.flush_branches();
}

void Dispatcher::update_fast_calls() {
    const CpuState& state = cx_.state;
    const auto kernel = static_cast<std::uint16_t>(state.star >> 32 & 0xfffc);
    const auto user = static_cast<std::uint16_t>(state.star >> 48 | 3);
    const bool ready = (state.efer & EFER_SCE) != 0 && is_canonical(state.lstar);
    frame_.fast_calls = {.syscall_cs = flat_code(kernel, 0, true),
                         .syscall_ss = flat_stack(static_cast<std::uint16_t>(kernel + 8), 0),
                         .sysret_cs =
                             flat_code(static_cast<std::uint16_t>((user + 16) | 3), 3, true),
                         .sysret_ss = flat_stack(static_cast<std::uint16_t>((user + 8) | 3), 3),
                         .ready = ready ? 1u : 0u};
}

void Dispatcher::apply_changes() {
    const std::uint32_t changes = cx_.changes;
    cx_.changes = 0;
    if ((changes & (change::kMode | change::kAddressSpace | change::kReset)) != 0)
        update_mode();
    else if ((changes & change::kSegments) != 0 && !cx_.code64())
        update_segments();
    if ((changes & change::kFastCalls) != 0)
        update_fast_calls();
    if ((changes & change::kActivity) != 0 ||
        ((changes & change::kEvents) != 0 &&
         (event_hint_ || cx_.state.pending_debug != 0 || !step_free(cx_))))
        service_ = true;
}

/// Between two blocks.
void Dispatcher::disturb() {
    const Chaos::Act act = chaos_.act();
    switch (act) {
    case Chaos::Act::None: return;
    case Chaos::Act::FlushTlb: flush_all(); return;
    case Chaos::Act::FlushNonGlobal: flush_tlb({.kind = TlbFlush::Kind::NonGlobal}); return;
    case Chaos::Act::DropWrites:
        vectors_.store();
        drop_all_writes();
        return;
    case Chaos::Act::DropBranches: tlbs_.flush_branches(); return;
    case Chaos::Act::Events: service_ = true; return;
    case Chaos::Act::Poll: break; // below: it is for the next block
    default: vectors_.store(); cold_.disturb(act, chaos_.next());
    }
}

/// False: somebody else asks for attention, too.
bool Dispatcher::promote_busy_code() {
    std::uint64_t asked = calm() | FrameHeader::kAttention;
    if (!frame_.header.attention.compare_exchange_strong(asked, calm()))
        return false;
    vectors_.store();
    cold_.promote(frame_.header.busy_code);
    return true;
}

/// Between two blocks: pause, kick, events. False: run() returns `result`.
bool Dispatcher::attend(Result& result) {
    if (frame_.header.attention.load(std::memory_order_relaxed) != calm() && !promote_busy_code()) {
        frame_.header.attention = calm();
        event_hint_ = service_ = true;
        frame_.event_hint = 1;
        vectors_.store();
        if (runner_ != nullptr)
            runner_->let_go();
        if (safepoint_.exchange(false))
            cold_.safepoint();
        if (kicked_.exchange(false)) {
            result = Result::Kick;
            return false;
        }
    }
    if (cx_.changes != 0)
        apply_changes();
    if (!service_)
        return true;
    service_ = false;
    const bool user = cx_.state.cpl == 3;
    const Next next = service_events(cx_);
    vectors_.store();
    if (runner_ != nullptr && !runs_users_) {
        if (!user)
            runner_->interrupted_elsewhere();
        else if (runner_->interrupted(space_key()))
            begin_users();
    }
    event_hint_ = cold_.has_event();
    frame_.event_hint = event_hint_ ? 1 : 0;
    if (cx_.changes != 0)
        apply_changes();
    if (next == Next::Execute)
        return true;
    result = next == Next::Halted ? Result::Halted : Result::Shutdown;
    service_ = true;
    return false;
}

bool Dispatcher::after_step(StepResult step, Result& result) {
    if (step == StepResult::Shutdown) {
        result = Result::Shutdown;
        return false;
    }
    if (step == StepResult::Halted)
        service_ = true;
    return true;
}

bool Dispatcher::interpret(Result& result) {
    ++fallbacks_;
    const std::uint64_t before = interpreter_.executed();
    const StepResult step = interpreter_.step();
    if (meter_ != nullptr) {
        const std::uint64_t executed = interpreter_.executed() - before;
        meter_->count(executed);
        executed_ += executed;
    }
    return after_step(step, result);
}

bool Dispatcher::deliver(Result& result) {
    count_fault();
    if (deliver_fault(cx_))
        return true;
    result = Result::Shutdown;
    return false;
}

/// Modes and moments that are not translated. An instruction that is known to leave the vectors
/// alone runs with the guest's in place (STI's shadow on the way out of a kernel is frequent).
bool Dispatcher::step_slowly(Result& result) {
    std::uint8_t bytes[16];
    std::uint32_t got = 0;
    Instruction instruction;
    if (translatable_ && fetch_linear(cx_, cx_.state.rip, bytes, 15, got) &&
        decode({bytes, got}, code_size(), instruction) == DecodeStatus::Ok &&
        !uses_vector_state(instruction))
        return interpret(result);
    vectors_.store();
    return interpret(result);
}

void Dispatcher::count_fault() {
    if (meter_ == nullptr)
        return;
    meter_->count(1);
    ++executed_;
}

/// Translated code has come back: counts what it executed. What it has taken from the budget for
/// the rest of its block stays `suspended_` until it goes on there.
void Dispatcher::settle(Exit why, std::uint64_t granted) {
    std::uint64_t left = 0;
    switch (why) {
    case Exit::Stale:
    case Exit::Attention: break;
    case Exit::Check: left = shared_check().left; break;
    case Exit::HostFault: left = frame_.header.exit_r13 >> 16 & 0xff; break;
    case Exit::Branch: // a branch to a non-canonical address has not been executed
        left = is_canonical(frame_.header.exit_r13) ? 0 : 1;
        break;
    default: left = *reinterpret_cast<const std::uint8_t*>(site_address() + sizeof(Site)); break;
    }
    const std::uint64_t executed = granted + suspended_ - (frame_.budget + left);
    suspended_ = left;
    meter_->count(executed);
    executed_ += executed;
}

Exit Dispatcher::enter(const std::uint8_t* at) {
    CpuState& state = frame_.state;
    frame_.header.resume = reinterpret_cast<std::uint64_t>(at);
    frame_.header.flags = pack_flags(state.rflags);
    frame_.header.tsc_offset = host_tsc_offset_ + state.tsc_offset;
    vectors_.load();
    ++entries_;
    std::uint64_t granted = meter_ == nullptr ? 0 : meter_->left() - suspended_;
    if (chaos_.enabled()) {
        const std::uint64_t most = chaos_.budget(granted);
        curtailed_ = most < granted;
        granted = most;
        if (chaos_.goes_around())
            notify();
    }
    frame_.budget = granted;
    const Exit why = stubs_.enter(&state);
    tlbs_.set_current(
        reinterpret_cast<TlbInstance*>(frame_.header.tlb_register - TlbInstance::kControl));
    if (meter_ != nullptr)
        settle(why, granted);
    state.rflags = unpack_flags(state.rflags, frame_.header.flags);
    return why;
}

Block* Dispatcher::block_in(std::uint64_t rip, const CodePage& page, std::uint32_t variant,
                            bool& fault) {
    const std::uint64_t offset = rip & kPageOffset;
    BlockKey key{.gpa = (page.gpa.value & ~kPageOffset) | offset,
                 .second_page = 0,
                 .mode = block_mode(rip) | variant};
    if (Block* const block = cache_.find(key); block != nullptr)
        return block;
    const std::byte* second = nullptr;
    const std::uint64_t in_page = 4096 - offset;
    if (in_page < 15) {
        Instruction instruction;
        const auto* const bytes = reinterpret_cast<const std::uint8_t*>(page.host + offset);
        if (decode({bytes, static_cast<std::size_t>(in_page)}, code_size(), instruction) ==
            DecodeStatus::NeedMoreBytes) {
            if (code32_ && !addressable(rip, in_page + 1))
                return nullptr; // beyond the limit of CS
            CodePage next;
            fault = !is_canonical(rip + in_page) || !code_page(cx_, rip + in_page, next);
            if (fault && !is_canonical(rip + in_page))
                cx_.gp(0);
            if (fault || next.host == nullptr)
                return nullptr;
            second = next.host;
            key.second_page = next.gpa.value & ~kPageOffset;
            if (Block* const block = cache_.find(key); block != nullptr)
                return block;
        }
    }
    vectors_.store();
    return cold_.translate(key, rip, page.host + offset, second);
}

/// nullptr: `fault` tells whether cx_.fault is to be delivered; otherwise the code is not in RAM.
Block* Dispatcher::find_block(std::uint64_t rip, std::uint32_t variant, CodePage& page,
                              bool& fault) {
    fault = false;
    if (!is_canonical(rip)) {
        fault = true;
        cx_.gp(0);
        return nullptr;
    }
    if (!code_page(cx_, rip, page)) {
        fault = true;
        return nullptr;
    }
    return page.host == nullptr ? nullptr : block_in(rip, page, variant, fault);
}

const std::uint8_t* Dispatcher::find_entry(std::uint32_t variant, bool& fault) {
    const std::uint64_t rip = cx_.state.rip;
    frame_.header.resume_r13 = rip;
    fault = false;
    const TlbInstance& tlb = *tlbs_.current();
    const std::size_t index = TlbInstance::branch_index(rip);
    if (variant == 0 && !unlinked_ && tlb.branches.data()[index].tag == rip)
        return tlb.branches.data()[index].host;
    if (variant == 0 && keeps_branches())
        if (const std::uint8_t* const host = tlbs_.recall_branch(rip); host != nullptr)
            return host;
    CodePage page;
    const Block* const block = find_block(rip, variant, page, fault);
    found_ = block;
    if (block == nullptr)
        return nullptr;
    if (variant == 0 && keeps_branches())
        tlbs_.insert_branch({.rip = rip,
                             .host = block->far_entry(),
                             .global = page.global && block->key.second_page == 0,
                             .page_shift = page.page_shift});
    return block->far_entry();
}

Dispatcher::Result Dispatcher::run() {
    Result result = Result::Kick;
    service_ = event_hint_ = true;
    near_limit_ = false;
    frame_.event_hint = 1;
    cx_.changes |= change::kMode;
    for (std::uint64_t blocks = 0; block_limit_ == 0 || blocks < block_limit_; ++blocks) {
        suspended_ = 0;
        if (at_limit()) { // before events: they come at the new time
            result = Result::Limit;
            break;
        }
        if (chaos_.enabled())
            disturb();
        if (!attend(result))
            break;
        if (!translatable_ || !step_free(cx_) || near_limit_) {
            if (!step_slowly(result))
                break;
            continue;
        }
        if (!(runs_users_ && cx_.state.cpl == 3 ? run_users(result) : run_translated(result)))
            break;
    }
    vectors_.store();
    if (runner_ != nullptr)
        runner_->let_go();
    return result;
}

/// A user's code on the host's CPU itself, until something happens. False: run() ends with
/// `result`.
bool Dispatcher::run_users(Result& result) {
    using enum UserRunner::Next;
    vectors_.store();
    if (runner_->wants_pages) {
        runner_->prime(*tlbs_.current(), tlbs_.pages(), tlbs_.page_count());
    }
    const auto next = runner_->run(frame_.header.attention, calm());
    runs_users_ = runner_->selected();
    switch (next) {
    case Around: return true;
    case Interpret: return interpret(result);
    case Translate: // unless what has changed makes that wrong
        return cx_.changes != 0 || !step_free(cx_) || run_translated(result);
    default: result = Result::Shutdown; return false;
    }
}

/// From the block at RIP on, until C++ has to look around. False: run() ends with `result`.
bool Dispatcher::run_translated(Result& result) {
    bool fault = false;
    const std::uint8_t* entry = find_entry(variant_, fault);
    variant_ = 0;
    if (entry == nullptr)
        return fault ? deliver(result) : step_slowly(result);
    if (observer_ != nullptr) {
        vectors_.store();
        observer_->before(found_->instructions);
        observed_ = true;
        observed_from_ = executed_;
    }
    bool leave = false;
    while (serve(enter(entry), result, leave))
        entry = reinterpret_cast<const std::uint8_t*>(frame_.header.resume);
    if (observed_) {
        vectors_.store();
        observed_ = false;
        observer_->after(executed_ - observed_from_);
    }
    return !leave;
}

void Dispatcher::count(VcpuStats& stats) const {
    stats.instructions = interpreter_.instructions();
    stats.executed = executed_;
    stats.blocks = entries_;
    stats.tlb_misses = misses_;
    stats.tlb_flushes = tlbs_.flushes();
    stats.fallbacks = fallbacks_;
}

} // namespace doppel::cpu::x86::frontend
