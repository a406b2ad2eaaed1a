// SPDX-License-Identifier: Apache-2.0
#include "vmm/save_job.hpp"

#include <pthread.h>

namespace doppel::vmm {

using base::Result;

SaveJob::SaveJob(std::uint64_t id, StateFileWriter writer, SavedVm vm,
                 const memory::GuestMemory& memory, base::EventLoop& loop, Done done)
    : id_{id}, writer_{std::move(writer)}, vm_{std::move(vm)}, memory_{memory}, loop_{loop},
      done_{std::move(done)}, thread_{[this] { work(); }} {
    ::pthread_setname_np(thread_.native_handle(), "save");
}

SaveJob::~SaveJob() {
    *alive_ = false;
    stop_.store(true);
    if (thread_.joinable())
        thread_.join();
}

void SaveJob::work() {
    loop_.post([this, result = write(), alive = alive_] {
        if (*alive)
            finish(result);
    });
}

Result<void> SaveJob::write() {
    auto ram = writer_.ram(memory_);
    DOPPEL_TRY_VOID(ram.write_all([this](std::uint64_t done_bytes) {
        done_bytes_.store(done_bytes, std::memory_order_relaxed);
        return !stop_.load(std::memory_order_relaxed);
    }));
    DOPPEL_TRY_VOID(writer_.commit(vm_, memory_.size_bytes()));
    done_bytes_.store(memory_.size_bytes(), std::memory_order_relaxed);
    return {};
}

void SaveJob::finish(Result<void> result) {
    thread_.join();
    state_ = result ? State::Done : State::Failed;
    if (!result)
        error_ = result.error().message();
    done_(std::move(result));
}

api::Job SaveJob::describe() const {
    constexpr const char* kNames[] = {"running", "done", "failed"};
    return {.id = id_,
            .kind = "save",
            .state = kNames[static_cast<std::size_t>(state_)],
            .done_bytes = done_bytes_.load(std::memory_order_relaxed),
            .total_bytes = memory_.size_bytes(),
            .error = error_};
}

} // namespace doppel::vmm
