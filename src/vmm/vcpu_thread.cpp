// SPDX-License-Identifier: Apache-2.0
#include "vmm/vcpu_thread.hpp"

#include <pthread.h>

#include <ctime>

#include <fmt/core.h>

#include "base/futex.hpp"

namespace doppel::vmm {

VcpuThread::VcpuThread(unsigned index, std::unique_ptr<cpu::x86::Vcpu> vcpu, OnExit on_exit,
                       Turns* turns, Profile* profile)
    : index_{index}, vcpu_{std::move(vcpu)}, on_exit_{std::move(on_exit)}, turns_{turns},
      profile_{profile} {}

VcpuThread::~VcpuThread() { stop(); }

void VcpuThread::start() {
    thread_ = std::jthread{[this] { main(); }};
    ::pthread_setname_np(thread_.native_handle(), fmt::format("vcpu{}", index_).c_str());
}

void VcpuThread::request_pause() {
    auto running = Wish::Run;
    wish_.compare_exchange_strong(running, Wish::Pause);
    leave_guest();
}

/// The wish has changed: the thread shall look, wherever it is.
void VcpuThread::leave_guest() {
    vcpu_->kick();
    notify();
    if (turns_ != nullptr)
        turns_->interrupt(index_);
}

void VcpuThread::wait_paused() {
    std::unique_lock lock{mutex_};
    if (thread_.joinable())
        changed_.wait(lock, [this] { return parked_; });
}

void VcpuThread::resume() {
    // parked_ stays until the thread has seen the wish: a pause may take it back before that.
    const std::scoped_lock lock{mutex_};
    wish_.store(Wish::Run);
    changed_.notify_all();
}

void VcpuThread::stop() {
    if (!thread_.joinable())
        return;
    {
        const std::scoped_lock lock{mutex_};
        wish_.store(Wish::Stop);
        changed_.notify_all();
    }
    leave_guest();
    thread_.join();
}

void VcpuThread::notify() noexcept {
    vcpu_->notify();
    if (turns_ != nullptr)
        return turns_->wake(index_);
    if (signal_.exchange(kCame, std::memory_order_acq_rel) == kSleeps)
        base::futex_wake_one(signal_);
}

std::uint64_t VcpuThread::cpu_time_ns() const {
    clockid_t clock{};
    timespec time{};
    auto handle = const_cast<std::jthread&>(thread_).native_handle();
    if (!thread_.joinable() || ::pthread_getcpuclockid(handle, &clock) != 0 ||
        ::clock_gettime(clock, &time) != 0)
        return 0;
    return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000u +
           static_cast<std::uint64_t>(time.tv_nsec);
}

void VcpuThread::wait_while_paused() {
    std::unique_lock lock{mutex_};
    parked_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return wish_.load() != Wish::Pause; });
    parked_ = false;
}

/// An event that came while the vCPU still ran has set signal_: then the vCPU looks once more,
/// which is why no event is slept over.
void VcpuThread::sleep_until_event() {
    std::uint32_t nothing = kNothing;
    if (signal_.compare_exchange_strong(nothing, kSleeps, std::memory_order_acq_rel)) {
        halt_sleeps_.fetch_add(1, std::memory_order_relaxed);
        while (signal_.load(std::memory_order_acquire) == kSleeps)
            base::futex_wait(signal_, kSleeps);
    }
    signal_.exchange(kNothing, std::memory_order_acq_rel); // run() looks at what there is by now
}

void VcpuThread::run_once() {
    if (turns_ != nullptr && !turns_->take(index_))
        return;
    auto exit = vcpu_->run();
    if (turns_ != nullptr)
        turns_->done(index_, exit);
    if (std::holds_alternative<cpu::KickExit>(exit) || std::holds_alternative<cpu::LimitExit>(exit))
        return;
    if (std::holds_alternative<cpu::HaltExit>(exit)) {
        if (turns_ == nullptr)
            sleep_until_event();
        return;
    }
    auto running = Wish::Run;
    wish_.compare_exchange_strong(running, Wish::Pause);
    on_exit_(index_, std::move(exit));
}

void VcpuThread::main() {
    if (profile_ != nullptr)
        profile_->begin(index_, *vcpu_);
    for (Wish wish = wish_.load(); wish != Wish::Stop; wish = wish_.load()) {
        if (wish == Wish::Run)
            run_once();
        else
            wait_while_paused();
    }
    if (profile_ != nullptr)
        profile_->end(index_);
    const std::scoped_lock lock{mutex_};
    parked_ = true;
    changed_.notify_all();
}

} // namespace doppel::vmm
