// SPDX-License-Identifier: Apache-2.0
/// The death of blocks (cpu/translator/cache). Two models of a vCPU "runner", which jumps to a
/// guest address A again and again by link, branch cache or lookup, and of another one.
///
/// Kill: the other one changes the bytes at A and raises a flag behind that. Once the runner has
/// seen the flag, it executes the new code only. A dead block's memory stays as it is.
///
/// Eviction: the other one empties the arena of A's block and puts one for an address B there.
/// The runner never executes it for A, and nobody patches it for A.
#include <doctest/doctest.h>

#include "explorer.hpp"

namespace {

enum class Mutation {
    None,
    // kill()
    KeepsLinks,    // incoming links are not put back
    KeepsFarEntry, // the far entry does not lead to the dispatcher
    LinksToDead,   // link() does not look if its target has died
    KillsOnce,     // only before the bytes change
    // recycle()
    KeepsBranchCache,   // of the other vCPU
    KeepsLinksInto,     // jumps of blocks elsewhere still lead there
    KeepsLinksFrom,     // jumps that were there will be put back when their target dies
    DoesNotStopOthers,  // the other one is in translated code meanwhile
    LinksAfterEviction, // serve_link() does not ask whether there was one
};

enum Block : unsigned char { kNone, kOld, kNew };

struct KillModel {
    struct State {
        Block table = kNone, link = kNone, branch_cache = kNone; // where A leads
        bool dead = false, stale_entry = false;                  // of the old block
        bool killing = false;                                    // it was alive
        bool bytes_new = false, flag = false;
        unsigned char mutex = 0; // of the cache: who holds it
        unsigned char runner = 0, laps = 0, other = 0;
        Block target = kNone; // of the runner's lookup,
        bool links = false;   // which serve_link() does; else serve_branch()
        bool saw_flag = false, outdated = false;
        auto operator<=>(const State&) const = default;
    };
    static constexpr std::size_t kThreads = 2;
    static constexpr unsigned char kLaps = 4, kEnd = 100, kRunner = 1, kOther = 2;
    Mutation mutation = Mutation::None;

    bool is(Mutation wanted) const { return mutation == wanted; }
    bool done(const State& s, std::size_t thread) const {
        return (thread == 0 ? s.runner : s.other) == kEnd;
    }
    bool step(State& s, std::size_t thread) const { return thread == 0 ? runner(s) : other(s); }

    static void execute(State& s, Block block) {
        s.outdated = s.outdated || (s.saw_flag && block == kOld);
        s.runner = 0;
    }

    /// The far entry of a block: looks anew if it is stale.
    static void enter(State& s, Block block) {
        if (block != kOld || !s.stale_entry)
            return execute(s, block);
        s.branch_cache = kNone;
        ask(s, false);
    }

    static void ask(State& s, bool links) {
        s.links = links;
        s.runner = 2;
    }

    bool runner(State& s) const {
        switch (s.runner) {
        case 0:
            s.saw_flag = s.flag;
            s.runner = ++s.laps > kLaps ? kEnd : 1;
            return true;
        case 1: // the jump, as it is patched now, or the branch cache
            if (s.link != kNone)
                execute(s, s.link);
            else if (s.branch_cache != kNone)
                enter(s, s.branch_cache);
            else
                ask(s, true);
            return true;
        case 2: // find(), no lock
            s.target = s.table;
            s.runner = s.target == kNone ? 3 : s.links ? 5 : 7;
            return true;
        case 3: // translate()
        case 5: // link()
            if (s.mutex != 0)
                return false;
            s.mutex = kRunner;
            ++s.runner;
            return true;
        case 4:
            if (s.table == kNone) {
                s.table = s.bytes_new ? kNew : kOld;
                if (s.table == kOld)
                    s.dead = s.stale_entry = false; // made anew
            }
            s.target = s.table;
            s.mutex = 0;
            s.runner = s.links ? 5 : 7;
            return true;
        case 6:
            if (s.target != kOld || !s.dead || is(Mutation::LinksToDead))
                s.link = s.target;
            s.mutex = 0;
            s.runner = 7;
            return true;
        default:
            s.branch_cache = s.target;
            enter(s, s.target);
            return true;
        }
    }

    /// CodeCache::kill(), the mutex held: translated code and find() do not ask for it.
    bool kill(State& s, unsigned char part) const {
        if (part == 0 && s.mutex != 0)
            return false;
        s.mutex = part == 4 ? 0 : kOther;
        if (part == 0)
            s.killing = s.table == kOld;
        if (!s.killing)
            return true;
        if (part == 0)
            s.dead = true;
        if (part == 1)
            s.table = kNone;
        if (part == 2 && !is(Mutation::KeepsLinks))
            s.link = kNone;
        if (part == 3 && !is(Mutation::KeepsFarEntry))
            s.stale_entry = true;
        return true;
    }

    /// A store to a code page: kill, change, kill; then another store.
    bool other(State& s) const {
        const bool second_kill = s.other >= 6 && s.other <= 10;
        bool moved = true;
        if (s.other < 5)
            moved = kill(s, s.other);
        else if (s.other == 5)
            s.bytes_new = true;
        else if (second_kill && !is(Mutation::KillsOnce))
            moved = kill(s, static_cast<unsigned char>(s.other - 6));
        else if (s.other == 11)
            s.flag = true;
        if (moved)
            s.other = s.other == 11 ? kEnd : static_cast<unsigned char>(s.other + 1);
        return moved;
    }

    const char* wrong(const State& s) const {
        return s.outdated ? "code that was seen to be changed is executed" : nullptr;
    }
};

struct EvictionModel {
    enum Place : unsigned char { kFree, kA, kB };
    struct State {
        Place place = kA;         // what the memory of A's block holds
        bool branch_cache = true; // the runner's leads to it
        bool link = true;         // likewise a jump of a block elsewhere
        bool own_link = true;     // a jump of A's block is among those to a block elsewhere
        bool stop = false, stands = false; // the runner, at a safepoint
        unsigned char evictions = 0, evictions_before = 0;
        unsigned char runner = 0, laps = 0, other = 0;
        bool foreign = false, patched = false;
        auto operator<=>(const State&) const = default;
    };
    static constexpr std::size_t kThreads = 2;
    static constexpr unsigned char kLaps = 3, kEnd = 100;
    Mutation mutation = Mutation::None;

    bool is(Mutation wanted) const { return mutation == wanted; }
    bool done(const State& s, std::size_t thread) const {
        return (thread == 0 ? s.runner : s.other) == kEnd;
    }
    bool step(State& s, std::size_t thread) const { return thread == 0 ? runner(s) : other(s); }

    /// Stands still if it is asked to; true when it goes on to `next`.
    static bool safepoint(State& s, unsigned char next) {
        if (s.stop && s.stands)
            return false;
        s.stands = s.stop;
        if (!s.stop)
            s.runner = next;
        return true;
    }

    bool runner(State& s) const {
        switch (s.runner) {
        case 0: return safepoint(s, 1);
        case 1: // in a block of A's page, which ends with an unlinked jump or a far one
            if (++s.laps > kLaps) {
                s.runner = kEnd;
                s.stands = true;
            } else {
                s.runner = s.branch_cache || s.link ? 2 : 3;
            }
            return true;
        case 2: // the address out of the branch cache or the jump
            s.foreign = s.foreign || s.place != kA;
            s.runner = 0;
            return true;
        case 3: // serve_link(): before the lookup, which may translate and so wait
            s.evictions_before = s.evictions;
            s.runner = 4;
            return true;
        case 4: return safepoint(s, 5);
        default: // patch the jump that was come from
            if (s.evictions == s.evictions_before || is(Mutation::LinksAfterEviction))
                s.patched = s.patched || s.evictions != s.evictions_before;
            s.runner = 0;
            return true;
        }
    }

    bool other(State& s) const {
        switch (s.other) {
        case 0:
            s.branch_cache = laps_decide(s);
            s.link = s.laps == 2;
            break;
        case 1: s.stop = true; break;
        case 2:
            if (!s.stands && !is(Mutation::DoesNotStopOthers))
                return false;
            s.place = kFree;
            ++s.evictions;
            s.branch_cache = s.branch_cache && is(Mutation::KeepsBranchCache);
            s.link = s.link && is(Mutation::KeepsLinksInto);
            s.own_link = is(Mutation::KeepsLinksFrom);
            break;
        case 3: s.place = kB; break;
        case 4: s.patched = s.patched || s.own_link; break; // the block elsewhere dies
        default:
            s.stop = false;
            s.other = kEnd;
            return true;
        }
        ++s.other;
        return true;
    }

    /// All ways to A are looked at: with and without an entry in the branch cache.
    static bool laps_decide(const State& s) { return s.laps % 2 == 0; }

    const char* wrong(const State& s) const {
        return s.foreign   ? "another block's code is executed"
               : s.patched ? "another block's code is patched"
                           : nullptr;
    }
};

template <typename Model> std::string verdict(Mutation mutation) {
    return doppel::model::explore(Model{mutation}).wrong;
}

} // namespace

TEST_CASE("a block whose bytes were seen to change is not executed any more") {
    const auto result = doppel::model::explore(KillModel{});
    CHECK(result.wrong == "");
    CHECK(result.states > 500);
}

TEST_CASE("the model of kill() sees what would be wrong") {
    const std::string outdated = "code that was seen to be changed is executed";
    CHECK(verdict<KillModel>(Mutation::KeepsLinks) == outdated);
    CHECK(verdict<KillModel>(Mutation::KeepsFarEntry) == outdated);
    CHECK(verdict<KillModel>(Mutation::LinksToDead) == outdated);
    CHECK(verdict<KillModel>(Mutation::KillsOnce) == outdated);
}

TEST_CASE("code memory is not given away under a vCPU") {
    const auto result = doppel::model::explore(EvictionModel{});
    CHECK(result.wrong == "");
    CHECK(result.states > 50);
}

TEST_CASE("the model of recycle() sees what would be wrong") {
    CHECK(verdict<EvictionModel>(Mutation::KeepsBranchCache) == "another block's code is executed");
    CHECK(verdict<EvictionModel>(Mutation::DoesNotStopOthers) != "");
    CHECK(verdict<EvictionModel>(Mutation::KeepsLinksInto) == "another block's code is executed");
    CHECK(verdict<EvictionModel>(Mutation::KeepsLinksFrom) == "another block's code is patched");
    CHECK(verdict<EvictionModel>(Mutation::LinksAfterEviction) ==
          "another block's code is patched");
}
