// SPDX-License-Identifier: Apache-2.0
#include "block/io/io_context.hpp"

#include <algorithm>
#include <thread>

#include "block/io/thread_engine.hpp"
#include "block/io/uring_engine.hpp"

namespace doppel::block {

namespace {

Result<std::unique_ptr<IoEngine>> create_engine(base::EventLoop& loop, IoKind kind) {
    if (kind == IoKind::Threads)
        return std::unique_ptr<IoEngine>{std::make_unique<ThreadEngine>(loop)};
    auto ring = UringEngine::create(loop);
    if (ring)
        return std::unique_ptr<IoEngine>{std::move(*ring)};
    if (kind == IoKind::IoUring)
        return std::unexpected(std::move(ring).error());
    return std::unique_ptr<IoEngine>{std::make_unique<ThreadEngine>(loop)};
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
