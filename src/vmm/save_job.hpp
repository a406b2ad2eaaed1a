// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Saves a VM to its state file on a thread of its own, so that the control thread can answer
/// meanwhile.
///
/// RAM is written while the guest runs, then the pages that it has changed by then, in rounds; for
/// the last round the VM is paused. It goes on as soon as nothing more is read of it: making file
/// and disks durable costs it no time.
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "api/control.hpp"
#include "base/event_loop.hpp"
#include "base/result.hpp"
#include "vmm/state_file/state_file.hpp"

namespace doppel::vmm {

/// Control thread only.
class SaveJob {
public:
    /// The VM, as far as it is saved. Control thread, but for flush_disks().
    class Source {
    public:
        /// Pauses the VM. let_go() lets it go on, unless somebody else wants it paused.
        virtual void hold() = 0;
        virtual void let_go() = 0;

        // --- paused ---
        virtual SavedVm describe() = 0;
        virtual void start_dirty_log() = 0;
        virtual void stop_dirty_log() = 0;
        /// GuestMemory::harvest_dirty_log(), and the engines know of it.
        virtual std::vector<std::uint64_t> harvest_dirty_log() = 0;

        /// On the job's thread: what the guest has written is on stable storage.
        virtual base::Result<void> flush_disks() = 0;

    protected:
        ~Source() = default;
    };
    struct Request {
        std::uint64_t id = 0;
        bool in_rounds = true;    // false: the VM is paused already, and for all of the work
        bool keep_paused = false; // after success
    };

    /// Source and memory outlive the job.
    SaveJob(Request request, StateFileWriter writer, Source& source,
            const memory::GuestMemory& memory, base::EventLoop& loop);
    ~SaveJob(); // stops the work; what is not complete leaves nothing behind
    SaveJob(const SaveJob&) = delete;
    SaveJob& operator=(const SaveJob&) = delete;

    std::uint64_t id() const { return request_.id; }
    bool is_running() const { return state_ == State::Running; }
    api::Job describe() const;

private:
    enum class State : std::uint8_t { Running, Done, Failed };
    enum class Phase : std::uint8_t { Rounds, LastRound, Durable };
    using Pages = std::vector<std::uint64_t>; // one bit each
    using Work = std::function<base::Result<void>()>;

    void begin(Phase phase, Work work);
    void ended(const base::Result<void>& result);
    void next_round();
    void last_round(Work work);
    void finish(const base::Result<void>& result);
    base::Result<void> write_all();
    base::Result<void> write_pages(const Pages& pages);
    base::Result<void> make_durable();

    const Request request_;
    StateFileWriter writer_; // the work's, while there is some
    SavedVm vm_;             // the same; of the last round
    Source& source_;
    const memory::GuestMemory& memory_;
    base::EventLoop& loop_;
    State state_ = State::Running;
    Phase phase_ = Phase::Rounds;
    unsigned rounds_ = 0;
    std::uint64_t changed_pages_ = UINT64_MAX; // in the round before
    std::string error_;
    std::shared_ptr<bool> alive_{new bool{true}}; // co-owned by an ended() that is posted
    std::atomic<bool> stop_{false};
    std::atomic<std::uint64_t> done_bytes_{0};
    std::jthread thread_;
};

} // namespace doppel::vmm
