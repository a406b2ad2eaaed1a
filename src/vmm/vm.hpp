// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One VM: its board, its vCPU threads and the control thread's loop.
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "api/control.hpp"
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

/// What the guest finds of the time for which it was saved.
enum class RestoreClock : std::uint8_t {
    CatchUp,  // it has passed: the guest's calendar is right, its timers fire
    Continue, // nothing: its calendar is late until it sets it itself
};

/// What the launcher passes in.
struct Inherited {
    base::UniqueFd console; // of ConsoleKind::Stdio
    base::UniqueFd started; // the VM's name is written to it when the guest starts
    base::UniqueFd state;   // file of a saved VM, which goes on instead of booting
    RestoreClock restore_clock = RestoreClock::CatchUp;
};

/// Control thread only, except stop().
class Vm {
public:
    /// Builds the machine and loads the kernel or the saved state; no guest code runs yet. Errors
    /// are the user's or the host's, with `field` set where it helps.
    static base::Result<std::unique_ptr<Vm>> create(const description::Machine& description,
                                                    Inherited inherited);
    ~Vm();

    /// Runs until the VM ends.
    Outcome run();
    /// Any thread: makes run() return Stopped.
    void stop();
    /// Stops vCPUs, clocks and devices, in this order; after it nothing but the control thread
    /// touches guest memory or device state, and the guest's time stands still. Does nothing when
    /// the VM is paused already; while it is being saved: it stays paused afterwards.
    void pause();
    /// Does nothing when the VM runs. Errors: Busy while it is being saved.
    base::Result<void> resume();
    bool is_paused() const;
    void press_power_button();

    /// Begins to save the VM. It goes on, but for a short pause in the end; if it shall stay paused
    /// or was so before, it is paused for all of the time. If saving fails, it is as it was.
    /// Errors: Busy; of creating the file.
    base::Result<api::Job> save(const api::SaveRequest& request);
    std::optional<api::Job> job(std::uint64_t id) const;
    api::VmStatus status() const;
    /// The event loop of the control thread: the caller may watch descriptors with it.
    base::EventLoop& loop();

    /// Counters for people, several lines.
    std::string statistics() const;
    /// After run(): where the guest was, if the description wants to know. Errors: Io.
    base::Result<void> write_profile();

private:
    struct Impl;
    explicit Vm(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

} // namespace doppel::vmm
