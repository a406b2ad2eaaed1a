// SPDX-License-Identifier: Apache-2.0
#pragma once
/// File operations by blocking system calls on worker threads, for hosts without io_uring.
#include "block/io/io_context.hpp"

namespace doppel::block {

class ThreadEngine final : public IoEngine {
public:
    explicit ThreadEngine(base::EventLoop& loop) : loop_{loop} {}
    void submit(FileOperation& operation) override;
    const char* name() const override { return "threads"; }

private:
    static constexpr unsigned kThreads = 32; // requests in flight on one loop's files
    base::EventLoop& loop_;
    WorkerPool pool_{kThreads};
};

} // namespace doppel::block
