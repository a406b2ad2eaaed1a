// SPDX-License-Identifier: Apache-2.0
#include "cpu/rendezvous.hpp"

#include <algorithm>

namespace doppel::cpu {

void Rendezvous::attach(Participant& vcpu) {
    const std::scoped_lock lock{mutex_};
    vcpus_.push_back(&vcpu);
}

void Rendezvous::detach(Participant& vcpu) {
    const std::scoped_lock lock{mutex_};
    std::erase(vcpus_, &vcpu);
}

void Rendezvous::enter_run() {
    std::unique_lock lock{mutex_};
    changed_.wait(lock, [this] { return !stop_; });
    ++running_;
}

void Rendezvous::leave_run() {
    const std::scoped_lock lock{mutex_};
    --running_;
    changed_.notify_all();
}

void Rendezvous::exclusive(const std::function<void()>& work) {
    std::unique_lock lock{mutex_};
    --running_; // whoever stops the others may count on us
    changed_.notify_all();
    changed_.wait(lock, [this] { return !stop_; });
    if (running_ != 0) {
        stop_ = true;
        for (Participant* const vcpu : vcpus_)
            vcpu->request_safepoint();
        changed_.wait(lock, [this] { return running_ == 0; });
    }
    work();
    stop_ = false;
    ++running_;
    changed_.notify_all();
}

} // namespace doppel::cpu
