// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One VM: its board, its vCPU threads and the control thread's loop.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "description/machine.hpp"

namespace doppel::base {
class EventLoop;
}

namespace doppel::vmm {

/// How a VM ended.
struct Outcome {
    enum class Kind : std::uint8_t {
        PowerOff,  // the guest switched itself off
        Rebooted,  // the guest asked for a reset and rebooting is off
        DebugExit, // the guest wrote to the debug-exit port; `exit_code` says what to end with
        Crashed,   // triple fault; `report` says where
        Stopped,   // stop()
        Failed,    // the engine could not go on; `report` says why
    };
    Kind kind = Kind::Stopped;
    int exit_code = 0;
    std::string report;
};

/// Descriptors that the launcher passes in.
struct Inherited {
    base::UniqueFd console; // of ConsoleKind::Stdio
    base::UniqueFd started; // written to when the guest starts
};

/// Control thread only, except stop().
class Vm {
public:
    /// Builds the machine and loads the kernel; no guest code runs yet. Errors are the user's or
    /// the host's, with `field` set where it helps.
    static base::Result<std::unique_ptr<Vm>> create(const description::Machine& description,
                                                    Inherited inherited);
    ~Vm();

    /// Runs until the VM ends.
    Outcome run();
    /// Any thread: makes run() return Stopped.
    void stop();
    /// Stops vCPUs, clocks and devices, in this order; after it nothing but the control thread
    /// touches guest memory or device state, and the guest's time stands still. Both do nothing
    /// when the VM is so already.
    void pause();
    void resume();
    bool is_paused() const;
    /// The event loop of the control thread: the caller may watch descriptors with it.
    base::EventLoop& loop();

    /// Counters for people, several lines.
    std::string statistics() const;

private:
    struct Impl;
    explicit Vm(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

} // namespace doppel::vmm
