// SPDX-License-Identifier: Apache-2.0
/// The handshake of self-modifying code (cpu/x86/frontend/world, cpu/write_marks, memory/
/// guest_memory): whenever everybody who writes to a page is through, no live block is made of
/// bytes that are not there any more. A page of two bytes. Two vCPUs translate them, the first one
/// twice; another one stores both, twice; a device does, once (no vCPU's safepoint holds it up).
/// Stores of the device and the writer's mark may be late.
#include <doctest/doctest.h>

#include <array>

#include "explorer.hpp"

namespace {

enum class Mutation {
    None,
    DoesNotAskWriters,     // the mark of the other vCPU is never looked at
    MarksWithoutFence,     // the writer looks at the page's state before its mark is visible
    MarksAfterLook,        // or sets the mark behind it
    UnmarksBeforeStore,    // in the slow path
    UnmarksBetweenBytes,   // the last byte is not stored yet
    KeepsWriteTags,        // the writer stands still, but keeps its write permission
    ReadsBeforeMark,       // bytes are read, then the page is made a code page
    DoesNotLookAgain,      // that it still is, with the cache locked
    LooksOnlyAtState,      // then, and not at the marks
    LooksAtMarksFirst,     // and then at the state
    InvalidatesBeforeOnly, // a block made between both bytes stays
    DeviceLooksOnce,       // a device looks at the state only before it writes
    DeviceWithoutFence,    // or looks again before its stores are visible
};

enum Thread : unsigned char { kTranslator, kOther, kWriter, kDevice, kStoreBuffer };

using Bytes = std::array<unsigned char, 2>;

struct CodePageModel {
    struct Translator {
        unsigned char at = 0, rounds = 0;
        Bytes read{}; // so far
        auto operator<=>(const Translator&) const = default;
    };
    struct State {
        Bytes memory{};
        bool code = false;  // kPageCode
        bool block = false; // a live one, made of:
        Bytes made_of{};
        std::array<Translator, 2> translators{};
        bool tag = false;                         // the writer's cached write permission,
        bool mark = false, late_mark = false;     // WriteMarks, and on its way
        bool fresh = false;                       // it was set for this store
        bool stop = false, writer_running = true; // cpu::Rendezvous
        unsigned char stopper = 0, cache = 0;     // who stops others, who holds the mutex, + 1
        unsigned char writer = 0, stores = 0, device = 0;
        bool watched = false, writer_watched = false; // the first look
        std::array<bool, 2> late{};                   // the device's stores, not visible yet
        auto operator<=>(const State&) const = default;
    };
    static constexpr std::size_t kThreads = 5;
    static constexpr unsigned char kDeviceValue = 9, kEnd = 100;
    Mutation mutation = Mutation::None;

    bool is(Mutation wanted) const { return mutation == wanted; }

    bool done(const State& s, std::size_t thread) const {
        switch (thread) {
        case kTranslator:
        case kOther: return s.translators[thread].at == kEnd;
        case kWriter: return s.writer == kEnd;
        case kDevice: return s.device == kEnd;
        default: return s.writer == kEnd && s.device == kEnd && !late(s);
        }
    }

    bool step(State& s, std::size_t thread) const {
        switch (thread) {
        case kTranslator:
        case kOther: return translator(s, s.translators[thread], static_cast<Thread>(thread));
        case kWriter: return writer(s);
        case kDevice: return device(s);
        default: return store_buffer(s);
        }
    }

    static bool late(const State& s) { return s.late[0] || s.late[1] || s.late_mark; }

    static bool lock(unsigned char& mutex, Thread thread) {
        if (mutex != 0)
            return false;
        mutex = static_cast<unsigned char>(thread + 1);
        return true;
    }

    /// World::translate().
    bool translator(State& s, Translator& t, Thread self) const {
        if (t.at < 10)
            return make_code_page(s, t, self);
        switch (t.at) {
        case 10:
            if (!lock(s.cache, self))
                return false;
            t.at = 11;
            return true;
        case 11: // is_code_page(): first the state, then the marks
        case 12: // then find(), before a new block is made
            if (!may_go_on(s, t.at == 11)) {
                s.cache = 0;
                t.at = 0;
                return true;
            }
            t.at = static_cast<unsigned char>(t.at == 11 ? 12 : s.block ? 15 : 13);
            return true;
        case 13:
        case 14:
            if (!is(Mutation::ReadsBeforeMark))
                t.read[t.at - 13u] = s.memory[t.at - 13u];
            ++t.at;
            return true;
        default:
            if (!s.block)
                s.made_of = t.read;
            s.block = true;
            s.cache = 0;
            t.at = ++t.rounds == (self == kTranslator ? 2 : 1) ? kEnd : 0;
            return true;
        }
    }

    bool may_go_on(const State& s, bool first_look) const {
        if (is(Mutation::DoesNotLookAgain))
            return true;
        if (first_look != is(Mutation::LooksAtMarksFirst))
            return s.code;
        return !s.mark || is(Mutation::LooksOnlyAtState) || is(Mutation::DoesNotAskWriters);
    }

    bool make_code_page(State& s, Translator& t, Thread self) const {
        switch (t.at) {
        case 0:
            if (is(Mutation::ReadsBeforeMark))
                t.read = s.memory;
            t.at = s.code ? 2 : 1;
            return true;
        case 1:
            s.code = true;
            t.at = 2;
            return true;
        case 2: t.at = s.mark && !is(Mutation::DoesNotAskWriters) ? 3 : 10; return true;
        case 3: // exclusive(): ask …
            if (!lock(s.stopper, self))
                return false;
            s.stop = true;
            t.at = 4;
            return true;
        default: // … and wait
            if (s.writer_running)
                return false;
            s.mark = false;
            if (!is(Mutation::KeepsWriteTags))
                s.tag = false;
            s.stop = false;
            s.stopper = 0;
            t.at = 10;
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
            s.code = false;
        return true;
    }

    /// A store of both bytes, in one instruction of the guest: by the tag, or with RamWrite after
    /// the Dispatcher has tried to get one.
    bool writer(State& s) const {
        switch (s.writer) {
        case 0: // a safepoint
            if (s.stop && !s.writer_running)
                return false;
            s.writer_running = !s.stop;
            s.writer = s.stop ? 0 : s.tag ? 6 : 1;
            return true;
        case 1: // may_keep_writing(), RamWrite: the mark …
            return set_mark(s);
        case 2: // … which is visible …
            if (s.late_mark && !is(Mutation::MarksWithoutFence))
                return false;
            s.writer = 3;
            return true;
        case 3: // … before the state is looked at
            s.writer_watched = s.code;
            s.writer = s.code ? 4 : 6;
            s.tag = !s.code;
            if (is(Mutation::MarksAfterLook))
                s.late_mark = s.fresh;
            if (s.code && is(Mutation::UnmarksBeforeStore))
                clear_mark(s);
            return true;
        case 4: // prepare_engine_write() looks once more: it may be none any longer
            if (!s.code) {
                s.writer_watched = false;
                s.writer = 6;
                return true;
            }
            if (!on_code_write(s, false))
                return false;
            s.writer = 6;
            return true;
        case 6:
            s.memory[0] = static_cast<unsigned char>(s.stores + 1);
            if (is(Mutation::UnmarksBetweenBytes) && !s.tag)
                clear_mark(s);
            s.writer = 7;
            return true;
        case 7:
            s.memory[1] = static_cast<unsigned char>(s.stores + 1);
            s.writer = s.writer_watched ? 8 : 9;
            return true;
        case 8:
            if (!on_code_write(s, true))
                return false;
            s.writer = 9;
            return true;
        default:
            if (!s.tag)
                clear_mark(s);
            s.writer_watched = s.fresh = false;
            s.writer = ++s.stores == 2 ? kEnd : 0;
            s.writer_running = s.writer == 0;
            return true;
        }
    }

    bool set_mark(State& s) const {
        s.fresh = !s.mark && !s.late_mark;
        if (!is(Mutation::MarksAfterLook))
            s.late_mark = s.fresh;
        s.writer = 2;
        return true;
    }

    static void clear_mark(State& s) {
        if (!s.fresh)
            return;
        s.mark = s.late_mark = false;
    }

    /// GuestMemory::write().
    bool device(State& s) const {
        switch (s.device) {
        case 0:
            s.watched = s.code;
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
            s.device = s.watched || (s.code && !is(Mutation::DeviceLooksOnce)) ? 4 : kEnd;
            return true;
        default:
            if (!on_code_write(s, true))
                return false;
            s.device = kEnd;
            return true;
        }
    }

    static bool store_buffer(State& s) {
        if (s.late_mark) {
            s.mark = true;
            s.late_mark = false;
            return true;
        }
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
        if (quiet && s.block && !s.code)
            return "a block whose page is no code page";
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
    CHECK(verdict(Mutation::DoesNotAskWriters) == "a stale block");
    CHECK(verdict(Mutation::MarksWithoutFence) == "a stale block");
    CHECK(verdict(Mutation::MarksAfterLook) == "a stale block");
    CHECK(verdict(Mutation::UnmarksBeforeStore) == "a stale block");
    CHECK(verdict(Mutation::UnmarksBetweenBytes) == "a stale block");
    CHECK(verdict(Mutation::KeepsWriteTags) == "a stale block");
    CHECK(verdict(Mutation::ReadsBeforeMark) == "a stale block");
    CHECK(verdict(Mutation::DoesNotLookAgain) != "");
    CHECK(verdict(Mutation::LooksOnlyAtState) == "a stale block");
    CHECK(verdict(Mutation::LooksAtMarksFirst) == "a stale block");
    CHECK(verdict(Mutation::InvalidatesBeforeOnly) == "a stale block");
    CHECK(verdict(Mutation::DeviceLooksOnce) == "a stale block");
    CHECK(verdict(Mutation::DeviceWithoutFence) == "a stale block");
}
