// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Makes vCPUs of a VM stand still, for what must not be seen half done: dropping code, taking
/// write permissions, locked accesses that no host instruction does at once.
///
/// A vCPU counts as running while it is inside run(), except at safepoints (between two
/// instructions or code blocks) and while it waits here itself. exclusive() asks some or all to
/// visit safepoint(), and waits until none of these is running; they do not run on until its work
/// is done. Coming and going takes no lock while nobody is asked (tests/model/rendezvous_test).
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <vector>

namespace doppel::cpu {

class Rendezvous {
public:
    class Participant {
    public:
        /// Any thread, never blocks: the vCPU calls safepoint() soon.
        virtual void request_safepoint() noexcept = 0;

    protected:
        virtual ~Participant() = default;

    private:
        friend class Rendezvous;
        static constexpr unsigned kRunning = 1; // set and cleared by the vCPU
        static constexpr unsigned kAsked = 2;   // to stand still; set and cleared under mutex_
        std::atomic<unsigned> standing_{0};
    };

    struct Counts {
        std::uint64_t stops = 0;     // calls of exclusive() that asked somebody who was running
        std::uint64_t waited_ns = 0; // for these
    };

    // --- any thread ---
    Counts counts() const;
    void attach(Participant& vcpu);
    void detach(const Participant& vcpu);

    // --- vCPU threads; `vcpu`, `caller`: whose ---
    void enter_run(Participant& vcpu);
    void leave_run(Participant& vcpu);
    void safepoint(Participant& vcpu) {
        leave_run(vcpu);
        enter_run(vcpu);
    }
    /// Runs `work` while no other vCPU runs. The caller is a running vCPU, and holds no lock that
    /// another vCPU may take before its next safepoint. It counts as standing at a safepoint until
    /// `work` begins.
    void exclusive(Participant& caller, const std::function<void()>& work);
    /// The same while none of `others` runs.
    void exclusive(Participant& caller, std::span<Participant* const> others,
                   const std::function<void()>& work);

private:
    void stop(const Participant& caller, std::span<Participant* const> others,
              std::unique_lock<std::mutex>& lock);

    mutable std::mutex mutex_; // of all below
    std::condition_variable changed_;
    std::vector<Participant*> vcpus_;
    bool busy_ = false; // somebody is in exclusive()
    Counts counts_;
};

} // namespace doppel::cpu
