// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Visits every state that a few threads can bring about by any interleaving of their steps.
///
/// A model is a type with
///     State                       everything, ordered by <=>; the first state is State{}
///     kThreads                    how many threads
///     bool step(State&, thread)   one atomic step; false: cannot move now (and State is not
///     changed) bool done(State, thread)    the thread has come to its end const char* wrong(State)
///     what is wrong with this state, nullptr when nothing is
/// A state in which nobody can move and somebody is not done is a deadlock.
///
/// What one step may do is what the code does at once: one atomic instruction, or everything under
/// one lock. Steps are sequentially consistent; a store that may be late (x86 keeps it in a buffer
/// until the next locked instruction or fence) is two steps, by a thread of its own if need be.
#include <compare>
#include <cstddef>
#include <set>
#include <string>
#include <vector>

namespace doppel::model {

struct Verdict {
    std::string wrong; // empty: nothing in any state
    std::size_t states = 0;
};

template <typename Model> Verdict explore(const Model& model) {
    using State = typename Model::State;
    std::set<State> seen{State{}};
    std::vector<State> open{State{}};
    while (!open.empty()) {
        const State state = open.back();
        open.pop_back();
        if (const char* const wrong = model.wrong(state); wrong != nullptr)
            return {wrong, seen.size()};
        bool moved = false;
        bool all_done = true;
        for (std::size_t thread = 0; thread < Model::kThreads; ++thread) {
            all_done = all_done && model.done(state, thread);
            State next = state;
            if (model.done(state, thread) || !model.step(next, thread))
                continue;
            moved = true;
            if (seen.insert(next).second)
                open.push_back(next);
        }
        if (!moved && !all_done)
            return {"deadlock", seen.size()};
    }
    return {"", seen.size()};
}

} // namespace doppel::model
