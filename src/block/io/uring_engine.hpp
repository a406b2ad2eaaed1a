// SPDX-License-Identifier: Apache-2.0
#pragma once
/// File operations by io_uring. What is submitted in one round of the loop enters the kernel in one
/// system call, before the loop waits; the ring's descriptor wakes the loop.
#include <deque>
#include <memory>

#include "block/io/io_context.hpp"

namespace doppel::block {

class UringEngine final : public IoEngine {
public:
    /// Errors: the kernel has no io_uring, forbids it, or lacks an operation we need.
    static Result<std::unique_ptr<UringEngine>> create(base::EventLoop& loop);
    ~UringEngine() override;
    void submit(FileOperation& operation) override;
    const char* name() const override { return "io_uring"; }

private:
    struct Ring; // keeps liburing's headers out of ours
    UringEngine(base::EventLoop& loop, std::unique_ptr<Ring> ring);
    bool push(FileOperation& operation);
    bool poll();
    bool reap();

    base::EventLoop& loop_;
    std::unique_ptr<Ring> ring_;
    std::deque<FileOperation*> backlog_; // found no room in the ring
    bool unsubmitted_ = false;
    std::uint64_t poll_number_ = 0;
};

} // namespace doppel::block
