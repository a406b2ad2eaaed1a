// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Writes a paused VM's state file on a thread of its own, so that the control thread can answer
/// meanwhile.
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>

#include "api/control.hpp"
#include "base/event_loop.hpp"
#include "base/result.hpp"
#include "vmm/state_file/state_file.hpp"

namespace doppel::vmm {

/// Control thread only.
class SaveJob {
public:
    using Done = std::function<void(base::Result<void> result)>;

    /// The memory outlives the job and does not change while it runs. `done` is called on the
    /// loop's thread, unless the job dies before.
    SaveJob(std::uint64_t id, StateFileWriter writer, SavedVm vm, const memory::GuestMemory& memory,
            base::EventLoop& loop, Done done);
    ~SaveJob(); // stops the work; what is not complete leaves nothing behind
    SaveJob(const SaveJob&) = delete;
    SaveJob& operator=(const SaveJob&) = delete;

    std::uint64_t id() const { return id_; }
    bool is_running() const { return state_ == State::Running; }
    api::Job describe() const;

private:
    enum class State : std::uint8_t { Running, Done, Failed };
    void work();
    base::Result<void> write();
    void finish(base::Result<void> result);

    const std::uint64_t id_;
    StateFileWriter writer_; // the job's thread, from its start
    const SavedVm vm_;
    const memory::GuestMemory& memory_;
    base::EventLoop& loop_;
    Done done_;
    State state_ = State::Running;
    std::string error_;
    std::shared_ptr<bool> alive_{new bool{true}}; // co-owned by a finish() that is posted
    std::atomic<bool> stop_{false};
    std::atomic<std::uint64_t> done_bytes_{0};
    std::jthread thread_;
};

} // namespace doppel::vmm
