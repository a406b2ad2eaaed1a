// SPDX-License-Identifier: Apache-2.0
#include "cpu/rendezvous.hpp"

#include <algorithm>
#include <chrono>

namespace doppel::cpu {

Rendezvous::Counts Rendezvous::counts() const {
    const std::scoped_lock lock{mutex_};
    return counts_;
}

void Rendezvous::attach(Participant& vcpu) {
    const std::scoped_lock lock{mutex_};
    vcpus_.push_back(&vcpu);
}

void Rendezvous::detach(const Participant& vcpu) {
    const std::scoped_lock lock{mutex_};
    std::erase(vcpus_, &vcpu);
}

void Rendezvous::enter_run(Participant& vcpu) {
    unsigned nobody_asks = 0;
    if (vcpu.standing_.compare_exchange_strong(nobody_asks, Participant::kRunning))
        return;
    std::unique_lock lock{mutex_};
    changed_.wait(lock, [&] { return vcpu.standing_ == 0; });
    vcpu.standing_ = Participant::kRunning; // nobody asks without the mutex
}

void Rendezvous::leave_run(Participant& vcpu) {
    if ((vcpu.standing_.fetch_and(~Participant::kRunning) & Participant::kAsked) == 0)
        return;
    const std::scoped_lock lock{mutex_}; // whoever waits has seen it, or is asleep by now
    changed_.notify_all();
}

void Rendezvous::exclusive(Participant& caller, const std::function<void()>& work) {
    exclusive(caller, {}, work);
}

void Rendezvous::exclusive(Participant& caller, std::span<Participant* const> others,
                           const std::function<void()>& work) {
    std::unique_lock lock{mutex_};
    // Whoever stops the others may count on us.
    if ((caller.standing_.fetch_and(~Participant::kRunning) & Participant::kAsked) != 0)
        changed_.notify_all();
    changed_.wait(lock, [this] { return !busy_; });
    busy_ = true;
    if (others.empty())
        others = vcpus_;
    stop(caller, others, lock);
    work();
    for (Participant* const vcpu : others)
        vcpu->standing_.fetch_and(~Participant::kAsked);
    busy_ = false;
    caller.standing_ = Participant::kRunning;
    changed_.notify_all();
}

void Rendezvous::stop(const Participant& caller, std::span<Participant* const> others,
                      std::unique_lock<std::mutex>& lock) {
    const auto runs = [](const Participant* vcpu) {
        return (vcpu->standing_ & Participant::kRunning) != 0;
    };
    bool any_runs = false;
    for (Participant* const vcpu : others) {
        if (vcpu == &caller ||
            (vcpu->standing_.fetch_or(Participant::kAsked) & Participant::kRunning) == 0)
            continue;
        vcpu->request_safepoint();
        any_runs = true;
    }
    if (!any_runs)
        return;
    const auto begin = std::chrono::steady_clock::now();
    changed_.wait(lock, [&] { return std::ranges::none_of(others, runs); });
    const std::chrono::nanoseconds waited = std::chrono::steady_clock::now() - begin;
    ++counts_.stops;
    counts_.waited_ns += static_cast<std::uint64_t>(waited.count());
}

} // namespace doppel::cpu
