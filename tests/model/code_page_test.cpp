// SPDX-License-Identifier: Apache-2.0
/// The handshake of self-modifying code (cpu/x86/frontend/world, memory/guest_memory): whenever
/// everybody who writes to a page is through, no live block is made of bytes that are not there any
/// more. A page of two bytes; one vCPU translates them, twice; another one stores both, twice; a
/// device does, once (no vCPU's safepoint holds it up, and its stores may be late).
#include <doctest/doctest.h>

#include <array>

#include "explorer.hpp"

namespace {

enum class Mutation {
    None,
    DoesNotStopOthers,     // the mark is set while the other vCPU is between look and store
    KeepsWriteTags,        // it stands still, but keeps its write permission
    ReadsBeforeMark,       // bytes are read, then the page is marked
    DoesNotLookAgain,      // that the page is still marked, with the cache locked
    InvalidatesBeforeOnly, // a block made between both bytes stays
    DeviceLooksOnce,       // a device looks at the mark only before it writes
    DeviceWithoutFence,    // or looks again before its stores are visible
};

enum Thread : unsigned char { kTranslator, kWriter, kDevice, kStoreBuffer };

using Bytes = std::array<unsigned char, 2>;

struct CodePageModel {
    struct State {
        Bytes memory{};
        bool marked = false; // kPageCode
        bool block = false;  // a live one, made of:
        Bytes made_of{};
        Bytes read{};     // by the translator, so far
        bool tag = false; // the writer's cached write permission
        bool stop = false, writer_running = true;
        unsigned char cache = 0; // who holds its mutex, + 1
        unsigned char translator = 0, rounds = 0, writer = 0, stores = 0, device = 0;
        bool watched = false;       // the device's first look
        std::array<bool, 2> late{}; // the device's stores, not visible yet
        auto operator<=>(const State&) const = default;
    };
    static constexpr std::size_t kThreads = 4;
    static constexpr unsigned char kDeviceValue = 9, kEnd = 100;
    Mutation mutation = Mutation::None;

    bool is(Mutation wanted) const { return mutation == wanted; }

    bool done(const State& s, std::size_t thread) const {
        switch (thread) {
        case kTranslator: return s.translator == kEnd;
        case kWriter: return s.writer == kEnd;
        case kDevice: return s.device == kEnd;
        default: return s.device == kEnd && !s.late[0] && !s.late[1];
        }
    }

    bool step(State& s, std::size_t thread) const {
        switch (thread) {
        case kTranslator: return translator(s);
        case kWriter: return writer(s);
        case kDevice: return device(s);
        default: return store_buffer(s);
        }
    }

    static bool lock(State& s, Thread thread) {
        if (s.cache != 0)
            return false;
        s.cache = static_cast<unsigned char>(thread + 1);
        return true;
    }

    /// World::translate().
    bool translator(State& s) const {
        switch (s.translator) {
        case 0: // make_code_page()
            if (is(Mutation::ReadsBeforeMark))
                s.read = s.memory;
            s.translator = s.marked ? 3 : 1;
            return true;
        case 1: // exclusive(): ask …
            s.stop = true;
            s.translator = 2;
            return true;
        case 2: // … and wait
            if (s.writer_running && !is(Mutation::DoesNotStopOthers))
                return false;
            s.marked = true;
            if (!is(Mutation::KeepsWriteTags))
                s.tag = false;
            s.stop = false;
            s.translator = 3;
            return true;
        case 3:
            if (!lock(s, kTranslator))
                return false;
            s.translator = 4;
            return true;
        case 4:
            if (!s.marked && !is(Mutation::DoesNotLookAgain)) {
                s.cache = 0;
                s.translator = 0;
                return true;
            }
            s.translator = s.block ? 7 : 5; // find() before a new one is made
            return true;
        case 5:
        case 6:
            if (!is(Mutation::ReadsBeforeMark))
                s.read[s.translator - 5u] = s.memory[s.translator - 5u];
            ++s.translator;
            return true;
        default:
            if (!s.block)
                s.made_of = s.read;
            s.block = true;
            s.cache = 0;
            s.translator = ++s.rounds == 2 ? kEnd : 0;
            return true;
        }
    }

    /// World::on_code_write(), all under the cache's mutex.
    bool on_code_write(State& s, bool after) const {
        if (s.cache != 0)
            return false;
        if (!after || !is(Mutation::InvalidatesBeforeOnly))
            s.block = false;
        if (after && !s.block)
            s.marked = false;
        return true;
    }

    /// A store of both bytes, in one instruction of the guest.
    bool writer(State& s) const {
        switch (s.writer) {
        case 0: // a safepoint
            if (s.stop && !s.writer_running)
                return false;
            s.writer_running = !s.stop;
            s.writer = s.stop ? 0 : 1;
            return true;
        case 1: // the inline check, then the slow path's look at the page's state
            s.writer = s.tag ? 3 : s.marked ? 5 : 2;
            return true;
        case 2:
            s.tag = true;
            s.writer = 3;
            return true;
        case 3: // the store; its last step leaves 5, below
        case 4: s.memory[s.writer++ - 3u] = static_cast<unsigned char>(s.stores + 1); break;
        case 5:
            if (!on_code_write(s, false))
                return false;
            s.writer = 6;
            return true;
        case 6:
        case 7: s.memory[s.writer++ - 6u] = static_cast<unsigned char>(s.stores + 1); return true;
        default:
            if (!on_code_write(s, true))
                return false;
            s.writer = 5;
        }
        if (s.writer == 5) {
            s.writer = ++s.stores == 2 ? kEnd : 0;
            s.writer_running = s.writer == 0;
        }
        return true;
    }

    /// GuestMemory::write().
    bool device(State& s) const {
        switch (s.device) {
        case 0:
            s.watched = s.marked;
            s.device = s.watched ? 1 : 2;
            return true;
        case 1:
            if (!on_code_write(s, false))
                return false;
            s.device = 2;
            return true;
        case 2:
            s.late = {true, true};
            s.device = 3;
            return true;
        case 3: // the fence
            if (!is(Mutation::DeviceWithoutFence) && (s.late[0] || s.late[1]))
                return false;
            s.device = s.watched || (s.marked && !is(Mutation::DeviceLooksOnce)) ? 4 : kEnd;
            return true;
        default:
            if (!on_code_write(s, true))
                return false;
            s.device = kEnd;
            return true;
        }
    }

    static bool store_buffer(State& s) {
        for (std::size_t i = 0; i < 2; ++i) {
            if (!s.late[i])
                continue;
            s.late[i] = false;
            s.memory[i] = kDeviceValue;
            return true;
        }
        return false;
    }

    const char* wrong(const State& s) const {
        const bool quiet = s.writer == kEnd && done(s, kDevice) && done(s, kStoreBuffer);
        if (quiet && s.block && s.made_of != s.memory)
            return "a stale block";
        if (quiet && s.block && !s.marked)
            return "a block whose page is not marked";
        return nullptr;
    }
};

std::string verdict(Mutation mutation) {
    return doppel::model::explore(CodePageModel{mutation}).wrong;
}

} // namespace

TEST_CASE("whoever writes, no block outlives its bytes") {
    const auto result = doppel::model::explore(CodePageModel{});
    CHECK(result.wrong == "");
    CHECK(result.states > 1000);
}

TEST_CASE("the model of code pages sees what would be wrong") {
    CHECK(verdict(Mutation::DoesNotStopOthers) == "a stale block");
    CHECK(verdict(Mutation::KeepsWriteTags) == "a stale block");
    CHECK(verdict(Mutation::ReadsBeforeMark) == "a stale block");
    CHECK(verdict(Mutation::DoesNotLookAgain) != "");
    CHECK(verdict(Mutation::InvalidatesBeforeOnly) == "a stale block");
    CHECK(verdict(Mutation::DeviceLooksOnce) == "a stale block");
    CHECK(verdict(Mutation::DeviceWithoutFence) == "a stale block");
}
