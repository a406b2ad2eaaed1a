// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Task<T>: an asynchronous operation that yields Result<T>. A coroutine that returns Task starts
/// at once and runs to its first wait inside the call; several may run side by side. Whoever holds
/// a Task must see it end (co_await, then() or IoContext::wait) before it is destroyed. One thread
/// only: that of the event loop on which the operation runs.
///
/// g++ 12 destroys temporaries of an await expression too early, so only named values are awaited;
/// DOPPEL_AWAIT and DOPPEL_AWAIT_VOID see to it.
#include <coroutine>
#include <cstdlib>
#include <optional>
#include <utility>
#include <vector>

#include "base/result.hpp"
#include "base/verify.hpp"

namespace doppel::block {

using base::Errc;
using base::Error;
using base::Result;

template <typename T> class [[nodiscard]] Task {
public:
    struct promise_type {
        std::optional<Result<T>> result;
        std::coroutine_handle<> waiter;

        struct Final {
            bool await_ready() const noexcept { return false; }
            std::coroutine_handle<>
            await_suspend(std::coroutine_handle<promise_type> self) const noexcept {
                const auto next = self.promise().waiter;
                return next ? next : std::noop_coroutine();
            }
            void await_resume() const noexcept {}
        };

        Task get_return_object() {
            return Task{std::coroutine_handle<promise_type>::from_promise(*this)};
        }
        std::suspend_never initial_suspend() const noexcept { return {}; }
        Final final_suspend() const noexcept { return {}; }
        void return_value(Result<T> value) { result.emplace(std::move(value)); }
        [[noreturn]] void unhandled_exception() const noexcept { std::abort(); }
    };

    Task(Task&& other) noexcept : handle_{std::exchange(other.handle_, {})} {}
    Task& operator=(Task&& other) noexcept {
        if (this != &other) {
            drop();
            handle_ = std::exchange(other.handle_, {});
        }
        return *this;
    }
    Task(const Task&) = delete;
    Task& operator=(const Task&) = delete;
    ~Task() { drop(); }

    bool done() const noexcept { return handle_.done(); }
    /// Only once done().
    Result<T> take() {
        auto& result = handle_.promise().result;
        if (!result)
            std::abort();
        return std::move(*result);
    }

    bool await_ready() const noexcept { return handle_.done(); }
    void await_suspend(std::coroutine_handle<> waiter) noexcept {
        handle_.promise().waiter = waiter;
    }
    Result<T> await_resume() { return take(); }

    /// Calls `done` with the Result when the operation ends, which may be inside this call.
    template <typename Callback> void then(Callback callback) &&;

private:
    explicit Task(std::coroutine_handle<promise_type> handle) : handle_{handle} {}
    void drop() noexcept {
        if (!handle_)
            return;
        DOPPEL_VERIFY(handle_.done(), "a Task was dropped while it ran");
        handle_.destroy();
    }
    std::coroutine_handle<promise_type> handle_;
};

/// A coroutine that nobody waits for; it destroys itself at its end.
struct Detached {
    struct promise_type {
        Detached get_return_object() const noexcept { return {}; }
        std::suspend_never initial_suspend() const noexcept { return {}; }
        std::suspend_never final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        [[noreturn]] void unhandled_exception() const noexcept { std::abort(); }
    };
};

template <typename T, typename Callback> Detached call_at_end(Task<T> task, Callback callback) {
    Result<T> result = co_await task;
    callback(std::move(result));
}

template <typename T> template <typename Callback> void Task<T>::then(Callback callback) && {
    call_at_end(std::move(*this), std::move(callback));
}

/// Waits for all; yields the first error in the order given.
inline Task<void> all_of(std::vector<Task<void>> tasks) {
    Result<void> outcome;
    for (auto& task : tasks) {
        Result<void> one = co_await task;
        if (!one && outcome)
            outcome = std::move(one);
    }
    co_return outcome;
}

/// A task that has already ended.
template <typename T> Task<T> ready(Result<T> value) { co_return value; }

} // namespace doppel::block

// NOLINTBEGIN(bugprone-macro-parentheses): a name that is declared has none

/// Declares `name` with the value of the awaited Task, or ends the coroutine with its error.
#define DOPPEL_AWAIT(name, expression)                                                             \
    auto name##_task = (expression);                                                               \
    auto name##_result = co_await name##_task;                                                     \
    if (!name##_result)                                                                            \
        co_return std::unexpected(std::move(name##_result).error());                               \
    auto name = std::move(name##_result).value()

/// The same for Task<void>.
#define DOPPEL_AWAIT_VOID(expression)                                                              \
    do {                                                                                           \
        auto doppel_await_task = (expression);                                                     \
        auto doppel_await_result = co_await doppel_await_task;                                     \
        if (!doppel_await_result)                                                                  \
            co_return std::unexpected(std::move(doppel_await_result).error());                     \
    } while (false)

/// DOPPEL_TRY for coroutines: declares `name` with the value of a Result.
#define DOPPEL_CO_TRY(name, expression)                                                            \
    auto name##_result = (expression);                                                             \
    if (!name##_result)                                                                            \
        co_return std::unexpected(std::move(name##_result).error());                               \
    auto name = std::move(name##_result).value()

#define DOPPEL_CO_TRY_VOID(expression)                                                             \
    do {                                                                                           \
        auto doppel_co_try_result = (expression);                                                  \
        if (!doppel_co_try_result)                                                                 \
            co_return std::unexpected(std::move(doppel_co_try_result).error());                    \
    } while (false)

// NOLINTEND(bugprone-macro-parentheses)
