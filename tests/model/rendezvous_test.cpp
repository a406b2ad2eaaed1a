// SPDX-License-Identifier: Apache-2.0
/// Standing still (cpu/rendezvous): three vCPUs that run, come and go, and are asked to stop by
/// each other. Two of them do something exclusively: one while the third stands still, one while
/// all others do. Nobody waits for ever, and nobody who was asked runs meanwhile.
#include <doctest/doctest.h>

#include <array>

#include "explorer.hpp"

namespace {

enum class Mutation {
    None,
    EntersWithoutLook,  // enter_run() sets its bit whatever stands there
    AsksWithoutWaiting, // exclusive() does not wait for those that run
    RunsWhileWaiting,   // who waits for its turn in exclusive() still counts as running
    LeavesQuietly,      // leave_run() wakes nobody
    WakesBeforeLeaving, // or wakes, then leaves
    NotOneAtATime,      // two in exclusive() at once: one forgets what the other has asked for
};

struct RendezvousModel {
    static constexpr std::size_t kThreads = 3;
    static constexpr unsigned char kEnd = 100, kLaps = 2;
    struct Vcpu {
        unsigned char at = 0, laps = 0;
        bool running = true, asked = false, request = false;
        bool asleep = false; // on the condition variable
        auto operator<=>(const Vcpu&) const = default;
    };
    struct State {
        std::array<Vcpu, kThreads> vcpus{};
        unsigned char mutex = 0; // who holds it, + 1
        bool busy = false;
        unsigned char alone = 0; // whose work is being done, + 1
        bool disturbed = false;
        auto operator<=>(const State&) const = default;
    };
    Mutation mutation = Mutation::None;

    bool is(Mutation wanted) const { return mutation == wanted; }
    bool done(const State& s, std::size_t thread) const { return s.vcpus[thread].at == kEnd; }

    /// Whom `thread` stops: vCPU 0 only the last one, vCPU 1 all others.
    static bool stops(std::size_t thread, std::size_t whom) {
        return whom != thread && (thread == 1 || whom == 2);
    }
    static void wake(State& s) {
        for (auto& vcpu : s.vcpus)
            vcpu.asleep = false;
    }
    static bool lock(State& s, std::size_t self) {
        if (s.mutex != 0)
            return false;
        s.mutex = static_cast<unsigned char>(self + 1);
        return true;
    }

    bool step(State& s, std::size_t self) const {
        Vcpu& v = s.vcpus[self];
        if (v.asleep)
            return false;
        if (v.at < 10)
            return run(s, v, self);
        return v.at < 20 ? safepoint(s, v, self) : exclusive(s, v, self);
    }

    /// Guest code, with a look at the request; leaves run() in the end.
    bool run(State& s, Vcpu& v, std::size_t self) const {
        if (s.alone != 0 && stops(s.alone - 1u, self))
            s.disturbed = true;
        if (v.request) {
            v.request = false;
            v.at = 10;
        } else if (v.laps == kLaps) {
            v.at = 10; // for good
        } else {
            ++v.laps;
            v.at = self == 2 ? 0 : 20;
        }
        return true;
    }

    /// leave_run(), enter_run().
    bool safepoint(State& s, Vcpu& v, std::size_t self) const {
        switch (v.at) {
        case 10:
            if (is(Mutation::WakesBeforeLeaving) && v.asked)
                wake(s);
            v.at = 11;
            return true;
        case 11:
            v.running = false;
            v.at = v.asked && !is(Mutation::LeavesQuietly) && !is(Mutation::WakesBeforeLeaving)
                       ? 12
                       : 14;
            return true;
        case 12: // under the mutex
            if (!lock(s, self))
                return false;
            v.at = 13;
            return true;
        case 13:
            wake(s);
            s.mutex = 0;
            v.at = 14;
            return true;
        case 14:
            if (v.laps == kLaps) {
                v.at = kEnd;
                return true;
            }
            v.at = 15;
            if (!v.asked || is(Mutation::EntersWithoutLook)) {
                v.running = true;
                v.at = 0;
            }
            return true;
        case 15:
            if (!lock(s, self))
                return false;
            v.at = 16;
            return true;
        default: // the condition variable gives the mutex away
            s.mutex = 0;
            v.asleep = v.asked;
            v.at = v.asked ? 15 : 0;
            v.running = !v.asked;
            return true;
        }
    }

    bool exclusive(State& s, Vcpu& v, std::size_t self) const {
        switch (v.at) {
        case 20:
            if (!lock(s, self))
                return false;
            v.at = 21;
            return true;
        case 21:
            if (!is(Mutation::RunsWhileWaiting))
                v.running = false;
            if (v.asked)
                wake(s);
            v.at = 22;
            return true;
        case 22:
            if (s.busy && !is(Mutation::NotOneAtATime))
                return sleep(s, v, 26);
            v.running = false;
            s.busy = true;
            v.at = 23;
            return true;
        case 23:
            for (std::size_t i = 0; i < kThreads; ++i) {
                if (!stops(self, i))
                    continue;
                s.vcpus[i].asked = true;
                s.vcpus[i].request = s.vcpus[i].request || s.vcpus[i].running;
            }
            v.at = 24;
            return true;
        case 24:
            for (std::size_t i = 0; i < kThreads; ++i)
                if (stops(self, i) && s.vcpus[i].running && !is(Mutation::AsksWithoutWaiting))
                    return sleep(s, v, 27);
            s.alone = static_cast<unsigned char>(self + 1);
            v.at = 25;
            return true;
        case 25:
            for (std::size_t i = 0; i < kThreads; ++i)
                if (stops(self, i))
                    s.vcpus[i].asked = false;
            s.alone = 0;
            s.busy = false;
            s.mutex = 0;
            v.running = true;
            v.at = 0;
            wake(s);
            return true;
        default: // awake again
            if (!lock(s, self))
                return false;
            v.at = v.at == 26 ? 22 : 24;
            return true;
        }
    }

    static bool sleep(State& s, Vcpu& v, unsigned char then) {
        s.mutex = 0;
        v.asleep = true;
        v.at = then;
        return true;
    }

    const char* wrong(const State& s) const {
        return s.disturbed ? "a vCPU runs that was asked to stand still" : nullptr;
    }
};

std::string verdict(Mutation mutation) {
    return doppel::model::explore(RendezvousModel{mutation}).wrong;
}

} // namespace

TEST_CASE("who is asked stands still, and all go on") {
    const auto result = doppel::model::explore(RendezvousModel{});
    CHECK(result.wrong == "");
    CHECK(result.states > 1000);
}

TEST_CASE("the model of standing still sees what would be wrong") {
    CHECK(verdict(Mutation::EntersWithoutLook) != "");
    CHECK(verdict(Mutation::AsksWithoutWaiting) != "");
    CHECK(verdict(Mutation::RunsWhileWaiting) == "deadlock");
    CHECK(verdict(Mutation::LeavesQuietly) == "deadlock");
    CHECK(verdict(Mutation::WakesBeforeLeaving) == "deadlock");
    CHECK(verdict(Mutation::NotOneAtATime) != "");
}
