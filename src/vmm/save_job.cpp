// SPDX-License-Identifier: Apache-2.0
#include "vmm/save_job.hpp"

#include <pthread.h>

#include <bit>

#include "base/log.hpp"

namespace doppel::vmm {

using base::Result;

namespace {

constexpr std::uint64_t kFewPages = 4096; // 16 MiB: written in the pause, some milliseconds
constexpr unsigned kMaxRounds = 6;        // of a guest that changes less and less

std::uint64_t count_set(std::span<const std::uint64_t> bits) {
    std::uint64_t count = 0;
    for (const auto word : bits)
        count += static_cast<unsigned>(std::popcount(word));
    return count;
}

} // namespace

SaveJob::SaveJob(Request request, StateFileWriter writer, Source& source,
                 const memory::GuestMemory& memory, base::EventLoop& loop)
    : request_{request}, writer_{std::move(writer)}, source_{source}, memory_{memory}, loop_{loop} {
    const auto everything = [this] { return write_all(); };
    if (!request_.in_rounds) {
        last_round(everything);
        return;
    }
    source_.hold();
    source_.start_dirty_log();
    source_.let_go();
    begin(Phase::Rounds, everything);
}

SaveJob::~SaveJob() {
    *alive_ = false;
    stop_.store(true);
    if (thread_.joinable())
        thread_.join();
}

// --- control thread ---------------------------------------------------------------------------

void SaveJob::begin(Phase phase, Work work) {
    phase_ = phase;
    thread_ = std::jthread{[this, work = std::move(work)] {
        loop_.post([this, result = work(), alive = alive_] {
            if (*alive)
                ended(result);
        });
    }};
    ::pthread_setname_np(thread_.native_handle(), "save");
}

void SaveJob::ended(const Result<void>& result) {
    thread_.join();
    if (!result)
        return finish(result);
    switch (phase_) {
    case Phase::Rounds: return next_round();
    case Phase::LastRound:
        if (!request_.keep_paused)
            source_.let_go();
        return begin(Phase::Durable, [this] { return make_durable(); });
    case Phase::Durable: return finish(result);
    }
}

/// More rounds help while they become shorter.
void SaveJob::next_round() {
    source_.hold();
    auto pages = source_.harvest_dirty_log();
    const auto changed = count_set(pages);
    const auto write = [this, pages = std::move(pages)] { return write_pages(pages); };
    base::log_debug("save: {} pages have changed in round {}", changed, rounds_);
    if (changed <= kFewPages || changed > changed_pages_ / 2 || ++rounds_ == kMaxRounds) {
        source_.stop_dirty_log();
        return last_round(write);
    }
    changed_pages_ = changed;
    source_.let_go();
    begin(Phase::Rounds, write);
}

void SaveJob::last_round(Work work) {
    vm_ = source_.describe();
    begin(Phase::LastRound, std::move(work));
}

void SaveJob::finish(const Result<void>& result) {
    state_ = result ? State::Done : State::Failed;
    if (result)
        return;
    error_ = result.error().message();
    if (phase_ == Phase::Rounds) {
        source_.hold();
        source_.stop_dirty_log();
    }
    source_.let_go();
}

api::Job SaveJob::describe() const {
    constexpr const char* kNames[] = {"running", "done", "failed"};
    return {.id = request_.id,
            .kind = "save",
            .state = kNames[static_cast<std::size_t>(state_)],
            .done_bytes = done_bytes_.load(std::memory_order_relaxed),
            .total_bytes = memory_.size_bytes(),
            .error = error_};
}

// --- the job's thread -------------------------------------------------------------------------

Result<void> SaveJob::write_all() {
    return writer_.ram(memory_).write_all([this](std::uint64_t done_bytes) {
        done_bytes_.store(done_bytes, std::memory_order_relaxed);
        return !stop_.load(std::memory_order_relaxed);
    });
}

Result<void> SaveJob::write_pages(const Pages& pages) {
    return writer_.ram(memory_).write_pages(pages);
}

/// The disks first: a state file that is complete must find them as it knows them.
Result<void> SaveJob::make_durable() {
    DOPPEL_TRY_VOID(source_.flush_disks());
    DOPPEL_TRY_VOID(writer_.commit(vm_, memory_.size_bytes()));
    done_bytes_.store(memory_.size_bytes(), std::memory_order_relaxed);
    return {};
}

} // namespace doppel::vmm
