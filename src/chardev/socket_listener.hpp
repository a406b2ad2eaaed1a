// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A console on a listening unix socket: one client at a time, the next may come when it has left.
#include <memory>
#include <mutex>
#include <string>

#include "chardev/fd_backend.hpp"

namespace doppel::chardev {

/// write() from any thread; all else on the loop's thread. Output without a client is dropped.
class SocketListener final : public Backend {
public:
    /// Binds `path`. A stale socket file (nobody listens) is replaced; any other file is an error.
    static base::Result<std::unique_ptr<SocketListener>> create(base::EventLoop& loop,
                                                                std::string path);
    ~SocketListener() override;

    void write(std::span<const std::byte> bytes) noexcept override;
    void set_receiver(ByteReceiver* receiver) noexcept override;
    void receiver_ready() noexcept override;
    void finish(std::chrono::milliseconds limit) override;

private:
    SocketListener(base::EventLoop& loop, base::UniqueFd fd, std::string path);
    void accept_soon();
    void accept_client();
    void drop_client();

    base::EventLoop& loop_;
    base::UniqueFd listener_;
    std::string path_;
    std::mutex mutex_;
    std::unique_ptr<FdBackend> client_;                          // guarded by mutex_
    ByteReceiver* receiver_ = nullptr;                           // guarded by mutex_
    std::shared_ptr<bool> alive_ = std::make_shared<bool>(true); // shared with posted tasks
};

} // namespace doppel::chardev
