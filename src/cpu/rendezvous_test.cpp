// SPDX-License-Identifier: Apache-2.0
#include "cpu/rendezvous.hpp"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

using namespace doppel::cpu;

namespace {

/// A vCPU that adds to `count` in two steps, as a guest would without a lock.
class Walker final : public Rendezvous::Participant {
public:
    Walker(Rendezvous& others, std::uint64_t& count) : others_{others}, count_{count} {
        others_.attach(*this);
    }
    ~Walker() { others_.detach(*this); }
    void request_safepoint() noexcept override { asked_ = true; }

    void run(unsigned rounds) {
        others_.enter_run(*this);
        for (unsigned i = 0; i < rounds; ++i) {
            if (asked_.exchange(false))
                others_.safepoint(*this);
            others_.exclusive(*this, [this] { ++count_; });
        }
        others_.leave_run(*this);
    }

private:
    Rendezvous& others_;
    std::uint64_t& count_;
    std::atomic<bool> asked_{false};
};

} // namespace

TEST_CASE("what runs exclusively runs alone") {
    constexpr unsigned kRounds = 2000;
    Rendezvous rendezvous;
    std::uint64_t count = 0;
    Walker first{rendezvous, count};
    Walker second{rendezvous, count};
    std::jthread other{[&] { second.run(kRounds); }};
    first.run(kRounds);
    other.join();
    CHECK(count == 2 * kRounds);
}

TEST_CASE("so does each of many, more than there are CPUs") {
    constexpr unsigned kVcpus = 16, kRounds = 200;
    Rendezvous rendezvous;
    std::uint64_t count = 0;
    std::vector<std::unique_ptr<Walker>> walkers;
    for (unsigned i = 0; i < kVcpus; ++i)
        walkers.push_back(std::make_unique<Walker>(rendezvous, count));
    {
        std::vector<std::jthread> threads;
        for (auto& walker : walkers)
            threads.emplace_back([&walker] { walker->run(kRounds); });
    }
    CHECK(count == kVcpus * kRounds);
}

TEST_CASE("a vCPU that has left run() holds nobody up") {
    Rendezvous rendezvous;
    std::uint64_t count = 0;
    Walker idle{rendezvous, count};
    Walker busy{rendezvous, count};
    idle.run(0);
    busy.run(3);
    CHECK(count == 3);
}

TEST_CASE("who was not asked runs on") {
    Rendezvous rendezvous;
    std::uint64_t count = 0;
    Walker asked{rendezvous, count};
    Walker busy{rendezvous, count};
    Walker caller{rendezvous, count};
    asked.run(0);
    rendezvous.enter_run(busy);
    rendezvous.enter_run(caller);
    Rendezvous::Participant* const others[]{&asked};
    rendezvous.exclusive(caller, others, [&count] { ++count; }); // does not wait for `busy`
    rendezvous.leave_run(caller);
    rendezvous.leave_run(busy);
    CHECK(count == 1);
    CHECK(rendezvous.counts().stops == 0);
}
