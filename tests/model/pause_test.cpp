// SPDX-License-Identifier: Apache-2.0
/// The pause handshake of vmm/vcpu_thread: after request_pause() and wait_paused() the vCPU touches
/// nothing until resume(), whatever it was doing, asleep in HLT or about to be; and the handshake
/// always comes to an end. Control thread: pause, resume, pause, resume, stop, without ever waiting
/// for the vCPU but in wait_paused(). A device sends one interrupt at any time.
#include <doctest/doctest.h>

#include "explorer.hpp"

namespace {

enum class Mutation {
    None,
    ResumeClearsParked,  // resume() says parked_ = false itself
    ObeyReadsWishTwice,  // a pause between both reads ends the thread
    PauseWithoutNotify,  // request_pause() does not wake the sleeper
    PauseWithoutKick,    // nor make the guest stop
    SleepsWithoutLook,   // the sleeper waits without looking if an event came since
    ClearsAttentionLast, // the engine clears `attention` after it has looked at events
};

enum class Wish : unsigned char { Run, Pause, Stop };

/// Control thread, in order; the second round is the first again.
enum Control : unsigned char { kWish, kKick, kSignal, kWait, kTouch, kResume, kEnd };

/// vCPU thread: where it is.
enum class At : unsigned char {
    Loop,
    Park,
    Parked,
    Unparked,
    Enter,
    Guest,
    ClearedAttention,
    LookedAtEvents,
    Halted,
    Sleep,
    Ended
};

struct PauseModel {
    struct State {
        Wish wish = Wish::Pause;
        bool parked = false, kicked = false, attention = true, signal = false, event = false;
        bool interrupted = false;                 // the device has done its part
        bool served = false;                      // the guest has seen the interrupt
        unsigned char control = kWait, round = 0; // the thread begins paused
        unsigned char device = 0;
        At at = At::Loop;
        auto operator<=>(const State&) const = default;
    };
    static constexpr std::size_t kThreads = 3;
    Mutation mutation = Mutation::None;
    bool halts = true; // the guest: HLT when there is nothing to do, or an endless loop

    bool is(Mutation wanted) const { return mutation == wanted; }

    bool done(const State& s, std::size_t thread) const {
        if (thread == 0)
            return s.control == kEnd;
        return thread == 1 ? s.at == At::Ended : s.interrupted;
    }

    bool step(State& s, std::size_t thread) const {
        return thread == 0 ? control(s) : thread == 1 ? vcpu(s) : device(s);
    }

    bool control(State& s) const {
        switch (s.control) {
        case kWish: // compare-exchange from Run: the thread may have parked itself
            if (s.wish == Wish::Run)
                s.wish = Wish::Pause;
            break;
        case kKick:
            if (!is(Mutation::PauseWithoutKick))
                s.kicked = s.attention = true;
            break;
        case kSignal:
            if (!is(Mutation::PauseWithoutNotify))
                s.signal = true;
            break;
        case kWait:
            if (!s.parked)
                return false;
            break;
        case kTouch: break; // the VM is the control thread's own
        case kResume:
            if (is(Mutation::ResumeClearsParked))
                s.parked = false;
            s.wish = s.round == 2 ? Wish::Stop : Wish::Run;
            s.control = s.round == 2 ? kEnd : kWish;
            ++s.round;
            return true;
        default: return false;
        }
        ++s.control;
        return true;
    }

    /// The interrupt controller, then Wakeup::notify(): the engine's flag and the sleeper's.
    bool device(State& s) const {
        switch (s.device++) {
        case 0: s.event = true; break;
        case 1: s.attention = true; break;
        default: s.signal = true; s.interrupted = true;
        }
        return true;
    }

    bool vcpu(State& s) const {
        switch (s.at) {
        case At::Loop:
            s.at = s.wish == Wish::Run ? At::Enter : s.wish == Wish::Pause ? At::Park : At::Ended;
            return true;
        case At::Park:
            s.parked = true;
            s.at = At::Parked;
            return true;
        case At::Parked: // woken, the mutex held: the predicate and what follows it
            if (s.wish == Wish::Pause)
                return false;
            s.parked = false;
            s.at = is(Mutation::ObeyReadsWishTwice) ? At::Unparked : At::Loop;
            return true;
        case At::Unparked: // `return wish == Run`
            s.at = s.wish == Wish::Run ? At::Enter : At::Ended;
            return true;
        case At::Enter: s.at = At::Guest; return true;
        case At::Guest: // executes until something wants its attention, then halts
            if (!s.attention) {
                if (!halts)
                    return false;
                s.at = At::Halted;
            } else if (is(Mutation::ClearsAttentionLast)) {
                s.at = look_at_events(s);
            } else {
                s.attention = false;
                s.at = At::ClearedAttention;
            }
            return true;
        case At::ClearedAttention: s.at = look_at_events(s); return true;
        case At::LookedAtEvents:
            if (is(Mutation::ClearsAttentionLast))
                s.attention = false;
            s.at = halts ? At::Halted : At::Guest;
            return true;
        case At::Halted: // run() has returned Halt
            if (is(Mutation::SleepsWithoutLook))
                s.signal = false;
            else if (s.signal) {
                s.signal = false;
                s.at = At::Loop;
                return true;
            }
            s.at = At::Sleep;
            return true;
        case At::Sleep:
            if (!s.signal)
                return false;
            s.signal = false;
            s.at = At::Loop;
            return true;
        case At::Ended: return false;
        }
        return false;
    }

    static At look_at_events(State& s) {
        if (s.kicked) {
            s.kicked = false;
            s.attention = true; // run() looks at everything when it is entered
            return At::Loop;
        }
        if (s.event) {
            s.event = false;
            s.served = true;
            return At::Guest;
        }
        return At::LookedAtEvents;
    }

    const char* wrong(const State& s) const {
        const bool runs =
            s.at == At::Guest || s.at == At::ClearedAttention || s.at == At::LookedAtEvents;
        if (s.control == kTouch && runs)
            return "the vCPU runs while the VM is paused";
        if (s.at == At::Ended && s.wish != Wish::Stop)
            return "the thread has ended";
        const bool asleep = s.at == At::Sleep && !s.signal;
        if (asleep && s.interrupted && s.event)
            return "an interrupt is slept over";
        return nullptr;
    }
};

std::string verdict(Mutation mutation, bool halts = true) {
    return doppel::model::explore(PauseModel{mutation, halts}).wrong;
}

} // namespace

TEST_CASE("a pause always succeeds, and nothing runs in it") {
    const auto result = doppel::model::explore(PauseModel{});
    CHECK(result.wrong == "");
    CHECK(result.states > 1000);
    CHECK(verdict(Mutation::None, false) == "");
}

TEST_CASE("the model of the pause sees what would be wrong") {
    CHECK(verdict(Mutation::ResumeClearsParked) == "deadlock");
    CHECK(verdict(Mutation::ObeyReadsWishTwice) == "the thread has ended");
    CHECK(verdict(Mutation::PauseWithoutNotify) == "deadlock");
    CHECK(verdict(Mutation::PauseWithoutKick, false) == "deadlock");
    CHECK(verdict(Mutation::SleepsWithoutLook) == "deadlock");
    CHECK(verdict(Mutation::ClearsAttentionLast) == "an interrupt is slept over");
}
