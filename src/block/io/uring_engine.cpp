// SPDX-License-Identifier: Apache-2.0
#include "block/io/uring_engine.hpp"

#include <liburing.h>
#include <sys/epoll.h>

#include <array>
#include <cerrno>

namespace doppel::block {

namespace {
constexpr unsigned kEntries = 256;
constexpr unsigned kRefusal = IORING_SETUP_CLAMP;
} // namespace

struct UringEngine::Ring {
    io_uring ring{};
    ~Ring() { io_uring_queue_exit(&ring); }
};

Result<std::unique_ptr<UringEngine>> UringEngine::create(base::EventLoop& loop) {
    io_uring raw{};
    // COOP_TASKRUN (Linux 5.19) saves interrupts of this thread; older kernels do without.
    int error = io_uring_queue_init(kEntries, &raw, kRefusal | IORING_SETUP_COOP_TASKRUN);
    if (error == -EINVAL)
        error = io_uring_queue_init(kEntries, &raw, kRefusal);
    if (error < 0)
        return base::fail_errno(-error, "set up io_uring",
                                "The thread pool works without it (--aio threads).");
    auto ring = std::make_unique<Ring>();
    ring->ring = raw;
    auto* probe = io_uring_get_probe_ring(&ring->ring);
    bool complete = probe != nullptr;
    for (const int operation : std::array{IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ,
                                          IORING_OP_WRITE, IORING_OP_FSYNC, IORING_OP_FALLOCATE})
        complete = complete && io_uring_opcode_supported(probe, operation) != 0;
    io_uring_free_probe(probe);
    if (!complete)
        return base::fail(Errc::Unsupported, "this kernel's io_uring lacks file operations");
    std::unique_ptr<UringEngine> engine{new UringEngine{loop, std::move(ring)}};
    DOPPEL_TRY_VOID(loop.add(engine->ring_->ring.ring_fd, EPOLLIN,
                             [self = engine.get()](std::uint32_t) { self->reap(); }));
    return engine;
}

UringEngine::UringEngine(base::EventLoop& loop, std::unique_ptr<Ring> ring)
    : loop_{loop}, ring_{std::move(ring)} {
    poll_number_ = loop_.add_poll([this] { return poll(); });
}

UringEngine::~UringEngine() {
    loop_.remove_poll(poll_number_);
    loop_.remove(ring_->ring.ring_fd);
}

void UringEngine::submit(FileOperation& operation) {
    if (!backlog_.empty() || !push(operation))
        backlog_.push_back(&operation);
}

bool UringEngine::push(FileOperation& operation) {
    auto* entry = io_uring_get_sqe(&ring_->ring);
    if (entry == nullptr) {
        io_uring_submit(&ring_->ring);
        entry = io_uring_get_sqe(&ring_->ring);
    }
    if (entry == nullptr)
        return false;
    const auto* first = operation.pieces;
    switch (operation.kind) {
    case FileOperation::Kind::Read:
        if (operation.piece_count == 1)
            io_uring_prep_read(entry, operation.fd, first->iov_base,
                               static_cast<unsigned>(first->iov_len), operation.offset);
        else
            io_uring_prep_readv(entry, operation.fd, first, operation.piece_count,
                                operation.offset);
        break;
    case FileOperation::Kind::Write:
        if (operation.piece_count == 1)
            io_uring_prep_write(entry, operation.fd, first->iov_base,
                                static_cast<unsigned>(first->iov_len), operation.offset);
        else
            io_uring_prep_writev(entry, operation.fd, first, operation.piece_count,
                                 operation.offset);
        break;
    case FileOperation::Kind::Sync:
        io_uring_prep_fsync(entry, operation.fd, IORING_FSYNC_DATASYNC);
        break;
    case FileOperation::Kind::Allocate:
        io_uring_prep_fallocate(entry, operation.fd, operation.mode,
                                static_cast<off_t>(operation.offset),
                                static_cast<off_t>(operation.length));
        break;
    }
    io_uring_sqe_set_data(entry, &operation);
    unsubmitted_ = true;
    return true;
}

bool UringEngine::poll() {
    while (!backlog_.empty() && push(*backlog_.front()))
        backlog_.pop_front();
    if (unsubmitted_) {
        // EAGAIN or EBUSY: the kernel is short of memory; the entries stay for the next round.
        unsubmitted_ = io_uring_submit(&ring_->ring) < 0;
    }
    return reap() || unsubmitted_;
}

bool UringEngine::reap() {
    bool any = false;
    io_uring_cqe* completion = nullptr;
    while (io_uring_peek_cqe(&ring_->ring, &completion) == 0) {
        auto* operation = static_cast<FileOperation*>(io_uring_cqe_get_data(completion));
        operation->result = completion->res;
        io_uring_cqe_seen(&ring_->ring, completion);
        operation->waiter.resume();
        any = true;
    }
    return any;
}

} // namespace doppel::block
