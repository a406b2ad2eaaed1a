// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What one event loop needs for block I/O: an engine that carries out file operations, worker
/// threads for what computes (compression, bulk copies), and the queue of coroutines to resume.
/// Owner thread only, except where a line says otherwise.
#include <sys/uio.h>

#include <coroutine>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>

#include "base/event_loop.hpp"
#include "block/io/worker_pool.hpp"
#include "block/task.hpp"

namespace doppel::block {

/// One operation on a file descriptor; lives until its completion.
struct FileOperation {
    enum class Kind : std::uint8_t { Read, Write, Sync, Allocate };
    Kind kind = Kind::Read;
    int fd = -1;
    const iovec* pieces = nullptr; // Read, Write
    unsigned piece_count = 0;
    std::uint64_t offset = 0;
    std::uint64_t length = 0; // Allocate
    int mode = 0;             // Allocate: fallocate(2)'s
    std::int64_t result = 0;  // bytes, or a negated errno
    std::coroutine_handle<> waiter{};
};

/// Carries out FileOperations; resumes the waiter on the loop's thread, never inside submit().
class IoEngine {
public:
    virtual ~IoEngine() = default;
    virtual void submit(FileOperation& operation) = 0;
    virtual const char* name() const = 0;
};

enum class IoKind : std::uint8_t {
    Auto,    // io_uring where the kernel lets us, else threads
    IoUring, // an error where it does not
    Threads,
};

class IoContext {
public:
    /// `loop` outlives the context. Errors: IoUring was asked for and the kernel refuses it.
    static Result<std::unique_ptr<IoContext>> create(base::EventLoop& loop,
                                                     IoKind kind = IoKind::Auto);
    ~IoContext();
    IoContext(const IoContext&) = delete;
    IoContext& operator=(const IoContext&) = delete;

    base::EventLoop& loop() noexcept { return loop_; }
    IoEngine& engine() noexcept { return *engine_; }
    /// One thread per host CPU, started when first used.
    WorkerPool& workers() noexcept { return workers_; }

    /// Resumes soon, from the loop: not inside the call.
    void resume_later(std::coroutine_handle<> waiter) { ready_.push_back(waiter); }

    /// Awaitable: auto wait = context.perform({…}); const auto result = co_await wait;
    struct Perform {
        IoEngine* engine;
        FileOperation operation;
        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<> waiter) {
            operation.waiter = waiter;
            engine->submit(operation);
        }
        std::int64_t await_resume() const noexcept { return operation.result; }
    };
    Perform perform(FileOperation operation) noexcept { return {engine_.get(), operation}; }

    /// Awaitable: runs `work` on a worker thread.
    struct OnWorker {
        IoContext* context;
        std::function<void()> work;
        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<> waiter) {
            context->workers_.run([this, waiter] {
                work();
                context->loop_.post([waiter] { waiter.resume(); });
            });
        }
        void await_resume() const noexcept {}
    };
    OnWorker on_worker(std::function<void()> work) { return {this, std::move(work)}; }

    /// Runs the loop until the task ends. Only while nobody runs the loop: at start-up, in tools.
    template <typename T> Result<T> wait(Task<T> task) {
        loop_.run_until([&] { return task.done(); });
        if (!task.done()) // somebody stopped the loop for good
            base::verify_failed("task.done()", "the loop runs while a task is waited for", __FILE__,
                                __LINE__);
        return task.take();
    }

private:
    IoContext(base::EventLoop& loop, std::unique_ptr<IoEngine> engine);
    bool run_ready();

    base::EventLoop& loop_;
    std::deque<std::coroutine_handle<>> ready_;
    WorkerPool workers_;
    std::unique_ptr<IoEngine> engine_;
    std::uint64_t poll_number_ = 0;
};

} // namespace doppel::block
