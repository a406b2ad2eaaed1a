// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.hpp"
#include "block/io/io_context.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

Task<void> write_number(IoContext& context, int fd, std::uint32_t number) {
    iovec piece{&number, sizeof number};
    auto wait =
        context.perform({FileOperation::Kind::Write, fd, &piece, 1, number * sizeof number});
    const auto result = co_await wait;
    if (result != sizeof number)
        co_return base::fail(Errc::Io, "short write");
    co_return {};
}

Task<std::thread::id> who_works(IoContext& context) {
    std::thread::id id;
    auto wait = context.on_worker([&id] { id = std::this_thread::get_id(); });
    co_await wait;
    co_return id;
}

} // namespace

TEST_CASE("each engine carries out more operations at once than its queue holds") {
    auto loop = base::EventLoop::create().value();
    for (const auto kind : {IoKind::Threads, IoKind::Auto}) {
        auto context = IoContext::create(*loop, kind).value();
        INFO("engine " << context->engine().name());
        const base::UniqueFd file{::memfd_create("test", MFD_CLOEXEC)};
        constexpr std::uint32_t kCount = 3000;
        std::vector<Task<void>> tasks;
        tasks.reserve(kCount);
        for (std::uint32_t i = 0; i < kCount; ++i)
            tasks.push_back(write_number(*context, file.get(), i));
        REQUIRE(context->wait(all_of(std::move(tasks))).has_value());
        std::vector<std::uint32_t> numbers(kCount);
        REQUIRE(::pread(file.get(), numbers.data(), kCount * 4, 0) == kCount * 4);
        bool right = true;
        for (std::uint32_t i = 0; i < kCount; ++i)
            right = right && numbers[i] == i;
        CHECK(right);
    }
}

TEST_CASE("an operation that fails yields its errno") {
    auto loop = base::EventLoop::create().value();
    for (const auto kind : {IoKind::Threads, IoKind::Auto}) {
        auto context = IoContext::create(*loop, kind).value();
        const auto result = context->wait(write_number(*context, -1, 0));
        CHECK(!result.has_value());
    }
}

TEST_CASE("work for a worker runs on another thread") {
    auto loop = base::EventLoop::create().value();
    auto context = IoContext::create(*loop).value();
    const auto id = context->wait(who_works(*context));
    REQUIRE(id.has_value());
    CHECK(*id != std::this_thread::get_id());
}
