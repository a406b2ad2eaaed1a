// SPDX-License-Identifier: Apache-2.0
/// The dirty log (memory/guest_memory): what is copied while the VM runs, and copied again where
/// the log says so, is in the end what is in RAM. One page; a vCPU and a device store to it at any
/// time; the control thread pauses, harvests, lets the VM go on, copies, and pauses for good.
#include <doctest/doctest.h>

#include "explorer.hpp"

namespace {

enum class Mutation {
    None,
    HarvestKeepsTags,      // the vCPU goes on writing without a look
    HarvestLeavesState,    // pages are not made clean again
    DoesNotStopTheVcpu,    // it may be between look and store
    DoesNotDrainTheDevice, // the same
    StoresUnmarked,        // a write to a clean page is not logged
};

enum Thread : unsigned char { kControl, kVcpu, kDevice };

struct DirtyLogModel {
    struct Writer {
        unsigned char at = 0, stores = 0;
        auto operator<=>(const Writer&) const = default;
    };
    struct State {
        unsigned char memory = 0, copy = 0, next_value = 1;
        bool clean = false, dirty = false; // the page's state, its bit in the log
        bool tag = false;                  // of the vCPU: may write without a look
        bool pause = false, harvested_dirty = false;
        unsigned char control = 0;
        Writer vcpu, device;
        auto operator<=>(const State&) const = default;
    };
    static constexpr std::size_t kThreads = 3;
    static constexpr unsigned char kStores = 2, kEnd = 100;
    Mutation mutation = Mutation::None;

    bool is(Mutation wanted) const { return mutation == wanted; }

    bool done(const State& s, std::size_t thread) const {
        if (thread == kControl)
            return s.control == kEnd;
        return (thread == kVcpu ? s.vcpu : s.device).stores == kStores || s.control == kEnd;
    }

    bool step(State& s, std::size_t thread) const {
        switch (thread) {
        case kControl: return control(s);
        case kVcpu: return write(s, s.vcpu, true);
        default: return write(s, s.device, false);
        }
    }

    bool paused(const State& s) const {
        return (s.vcpu.at == 0 || is(Mutation::DoesNotStopTheVcpu)) &&
               (s.device.at == 0 || is(Mutation::DoesNotDrainTheDevice));
    }

    void harvest(State& s) const {
        s.harvested_dirty = s.dirty;
        s.dirty = false;
        if (!is(Mutation::HarvestLeavesState))
            s.clean = true;
        if (!is(Mutation::HarvestKeepsTags))
            s.tag = false;
    }

    bool control(State& s) const {
        switch (s.control) {
        case 0:
        case 4: s.pause = true; break;
        case 1:
        case 5:
            if (!paused(s))
                return false;
            harvest(s);
            break;
        case 2: s.pause = false; break;
        case 3: s.copy = s.memory; break; // the guest runs
        case 6:
            if (s.harvested_dirty)
                s.copy = s.memory;
            break;
        default: s.control = kEnd; return true;
        }
        ++s.control;
        return true;
    }

    /// Engine or GuestMemory::write(): look, log, store; a pause waits until it is over.
    bool write(State& s, Writer& w, bool keeps_tag) const {
        switch (w.at) {
        case 0:
            if (s.pause)
                return false;
            w.at = keeps_tag && s.tag ? 4 : 1;
            return true;
        case 1: w.at = s.clean && !is(Mutation::StoresUnmarked) ? 2 : 4; return true;
        case 2: // mark_dirty(): the bit first
            s.dirty = true;
            w.at = 3;
            return true;
        case 3:
            s.clean = false;
            w.at = 4;
            return true;
        case 4:
            s.memory = s.next_value++;
            w.at = keeps_tag ? 5 : 6;
            return true;
        case 5: // the next access finds the page plain
            s.tag = !s.clean;
            w.at = 6;
            return true;
        default:
            ++w.stores;
            w.at = 0;
            return true;
        }
    }

    const char* wrong(const State& s) const {
        return s.control == kEnd && s.copy != s.memory ? "the copy is not what is in RAM" : nullptr;
    }
};

std::string verdict(Mutation mutation) {
    return doppel::model::explore(DirtyLogModel{mutation}).wrong;
}

} // namespace

TEST_CASE("no write escapes the dirty log") {
    const auto result = doppel::model::explore(DirtyLogModel{});
    CHECK(result.wrong == "");
    CHECK(result.states > 200);
}

TEST_CASE("the model of the dirty log sees what would be wrong") {
    const std::string lost = "the copy is not what is in RAM";
    CHECK(verdict(Mutation::HarvestKeepsTags) == lost);
    CHECK(verdict(Mutation::HarvestLeavesState) == lost);
    CHECK(verdict(Mutation::DoesNotStopTheVcpu) == lost);
    CHECK(verdict(Mutation::DoesNotDrainTheDevice) == lost);
    CHECK(verdict(Mutation::StoresUnmarked) == lost);
}
