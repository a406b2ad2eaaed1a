// SPDX-License-Identifier: Apache-2.0
#include "block/io/thread_engine.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace doppel::block {

namespace {

std::int64_t carry_out(const FileOperation& operation) {
    const auto offset = static_cast<off_t>(operation.offset);
    const auto count = static_cast<int>(operation.piece_count);
    switch (operation.kind) {
    case FileOperation::Kind::Read: return ::preadv(operation.fd, operation.pieces, count, offset);
    case FileOperation::Kind::Write:
        return ::pwritev(operation.fd, operation.pieces, count, offset);
    case FileOperation::Kind::Sync: return ::fdatasync(operation.fd);
    case FileOperation::Kind::Allocate:
        return ::fallocate(operation.fd, operation.mode, offset,
                           static_cast<off_t>(operation.length));
    }
    return -1;
}

} // namespace

void ThreadEngine::submit(FileOperation& operation) {
    pool_.run([this, &operation] {
        const auto result = carry_out(operation);
        operation.result = result < 0 ? -errno : result;
        loop_.post([&operation] { operation.waiter.resume(); });
    });
}

} // namespace doppel::block
