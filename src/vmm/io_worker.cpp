// SPDX-License-Identifier: Apache-2.0
#include "vmm/io_worker.hpp"

#include <pthread.h>

namespace doppel::vmm {

base::Result<std::unique_ptr<IoWorker>> IoWorker::create(std::string name) {
    auto worker = std::unique_ptr<IoWorker>{new IoWorker{std::move(name)}};
    worker->loop_ = DOPPEL_TRY(base::EventLoop::create());
    return worker;
}

void IoWorker::start() {
    is_done_ = false;
    thread_ = std::jthread{[this] {
        ::pthread_setname_np(::pthread_self(), name_.c_str());
        loop_->run_until([this] { return is_done_; });
    }};
}

void IoWorker::stop() {
    if (!thread_.joinable())
        return;
    loop_->post([this] { is_done_ = true; });
    thread_.join();
}

} // namespace doppel::vmm
