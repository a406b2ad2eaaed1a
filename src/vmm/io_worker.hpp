// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A thread that serves a device's queues and its backend: an event loop and who runs it.
#include <memory>
#include <string>
#include <thread>

#include "base/event_loop.hpp"

namespace doppel::vmm {

/// Control thread only. The loop may be used by the control thread itself while the worker is not
/// started or has been stopped.
class IoWorker {
public:
    /// `name`: of the thread, at most 15 characters.
    static base::Result<std::unique_ptr<IoWorker>> create(std::string name);
    ~IoWorker() { stop(); }
    IoWorker(const IoWorker&) = delete;
    IoWorker& operator=(const IoWorker&) = delete;

    base::EventLoop& loop() { return *loop_; }
    void start();
    /// Returns when the thread has ended. Nothing the loop would call afterwards is called.
    void stop();

private:
    explicit IoWorker(std::string name) : name_{std::move(name)} {}
    const std::string name_;
    std::unique_ptr<base::EventLoop> loop_;
    bool is_done_ = false; // of the thread, while there is one
    std::jthread thread_;
};

} // namespace doppel::vmm
