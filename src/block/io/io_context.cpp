// SPDX-License-Identifier: Apache-2.0
#include "block/io/io_context.hpp"

#include <algorithm>
#include <thread>

#include "block/io/thread_engine.hpp"
#include "block/io/uring_engine.hpp"

namespace doppel::block {

namespace {

/// io_uring where the kernel lets us, else threads: made at the first operation, as a tool that
/// reads a little of a file in memory needs neither.
class EngineOnDemand final : public IoEngine {
public:
    explicit EngineOnDemand(base::EventLoop& loop) : loop_{loop} {}
    void submit(FileOperation& operation) override { engine().submit(operation); }
    const char* name() const override { return engine().name(); }

private:
    IoEngine& engine() const {
        if (!engine_) {
            if (auto ring = UringEngine::create(loop_); ring)
                engine_ = std::move(*ring);
            else
                engine_ = std::make_unique<ThreadEngine>(loop_);
        }
        return *engine_;
    }

    base::EventLoop& loop_;
    mutable std::unique_ptr<IoEngine> engine_;
};

Result<std::unique_ptr<IoEngine>> create_engine(base::EventLoop& loop, IoKind kind) {
    if (kind == IoKind::Threads)
        return std::unique_ptr<IoEngine>{std::make_unique<ThreadEngine>(loop)};
    if (kind == IoKind::Auto)
        return std::unique_ptr<IoEngine>{std::make_unique<EngineOnDemand>(loop)};
    return std::unique_ptr<IoEngine>{DOPPEL_TRY(UringEngine::create(loop))};
}

} // namespace

Result<std::unique_ptr<IoContext>> IoContext::create(base::EventLoop& loop, IoKind kind) {
    auto engine = DOPPEL_TRY(create_engine(loop, kind));
    return std::unique_ptr<IoContext>{new IoContext{loop, std::move(engine)}};
}

IoContext::IoContext(base::EventLoop& loop, std::unique_ptr<IoEngine> engine)
    : loop_{loop}, workers_{std::max(1u, std::thread::hardware_concurrency())},
      engine_{std::move(engine)} {
    poll_number_ = loop_.add_poll([this] { return run_ready(); });
}

IoContext::~IoContext() { loop_.remove_poll(poll_number_); }

bool IoContext::run_ready() {
    if (ready_.empty())
        return false;
    // Only those of now: a coroutine that queues itself again must not starve the loop.
    for (auto count = ready_.size(); count > 0; --count) {
        const auto waiter = ready_.front();
        ready_.pop_front();
        waiter.resume();
    }
    return true;
}

} // namespace doppel::block
