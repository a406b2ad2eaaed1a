// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Makes all vCPUs of a VM stand still, for what must not be seen half done: dropping code, locked
/// accesses that no host instruction does at once.
///
/// A vCPU counts as running while it is inside run(), except at safepoints (between two
/// instructions or code blocks) and while it waits here itself. exclusive() asks everybody to visit
/// safepoint() and waits until no other vCPU is running.
#include <condition_variable>
#include <functional>
#include <mutex>
#include <vector>

namespace doppel::cpu {

class Rendezvous {
public:
    class Participant {
    public:
        /// Any thread, never blocks: the vCPU calls safepoint() soon.
        virtual void request_safepoint() noexcept = 0;

    protected:
        ~Participant() = default;
    };

    // --- any thread ---
    void attach(Participant& vcpu);
    void detach(Participant& vcpu);

    // --- vCPU threads ---
    void enter_run();
    void leave_run();
    void safepoint() {
        leave_run();
        enter_run();
    }
    /// Runs `work` while no other vCPU runs. The caller is a running vCPU, and holds no lock that
    /// another vCPU may take before its next safepoint.
    void exclusive(const std::function<void()>& work);

private:
    std::mutex mutex_; // of all below
    std::condition_variable changed_;
    std::vector<Participant*> vcpus_;
    int running_ = 0;
    bool stop_ = false;
};

} // namespace doppel::cpu
