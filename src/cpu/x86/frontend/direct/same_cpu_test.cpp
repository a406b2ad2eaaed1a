// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/same_cpu.hpp"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include <doctest/doctest.h>

namespace doppel::cpu::x86::frontend {
namespace {

int cpus(pid_t who) {
    cpu_set_t set;
    CPU_ZERO(&set);
    REQUIRE(::sched_getaffinity(who, sizeof set, &set) == 0);
    return CPU_COUNT(&set);
}

/// A process that waits for its end.
class Partner {
public:
    Partner() : pid{::fork()} {
        while (pid == 0)
            ::pause();
    }
    ~Partner() {
        ::kill(pid, SIGKILL);
        ::waitpid(pid, nullptr, 0);
    }
    Partner(const Partner&) = delete;
    Partner& operator=(const Partner&) = delete;
    const pid_t pid;
};

TEST_CASE("same CPU: both are bound from the first turn on until the caller lets go") {
    const int all = cpus(0);
    if (all < 2)
        return; // nothing to see
    const Partner one, two;
    SameCpu with_one, with_two;
    with_one.before(one.pid);
    CHECK(cpus(0) == 1);
    CHECK(cpus(one.pid) == 1);
    with_one.after(one.pid);
    CHECK(cpus(0) == 1); // the next turn will find it so
    with_two.before(two.pid);
    with_two.after(two.pid);
    CHECK(cpus(two.pid) == 1);
    SameCpu::let_go();
    CHECK(cpus(0) == all);
    CHECK(cpus(one.pid) == 1);
    SameCpu::let_go(); // nothing to let go of
    CHECK(cpus(0) == all);
}

TEST_CASE("same CPU: where another thread has bound itself nobody else does") {
    const int all = cpus(0);
    if (all < 2)
        return;
    const Partner one, two;
    SameCpu mine;
    mine.before(one.pid);
    mine.after(one.pid);
    cpu_set_t here;
    REQUIRE(::sched_getaffinity(0, sizeof here, &here) == 0);
    std::thread{[&] { // on our CPU, and may be nowhere else
        SameCpu its;
        its.before(two.pid);
        CHECK(cpus(two.pid) == all);
        its.after(two.pid);
    }}
        .join();
    SameCpu::let_go();
    std::thread{[&] {
        SameCpu its;
        its.before(two.pid);
        CHECK(cpus(two.pid) == 1);
        its.after(two.pid);
    }}.join();
    mine.before(one.pid); // it has let go by ending
    CHECK(cpus(0) == 1);
    SameCpu::let_go();
    CHECK(cpus(0) == all);
}

TEST_CASE("same CPU: what somebody else has bound the caller to stays") {
    const int all = cpus(0);
    if (all < 2)
        return;
    cpu_set_t allowed, one;
    REQUIRE(::sched_getaffinity(0, sizeof allowed, &allowed) == 0);
    const Partner partner;
    SameCpu same;
    same.before(partner.pid);
    same.after(partner.pid);
    cpu_set_t bound;
    REQUIRE(::sched_getaffinity(0, sizeof bound, &bound) == 0);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++i)
        if (CPU_ISSET(i, &allowed) && !CPU_ISSET(i, &bound))
            CPU_SET(i, &one);
    REQUIRE(::sched_setaffinity(0, sizeof one, &one) == 0);
    SameCpu::let_go();
    cpu_set_t now;
    REQUIRE(::sched_getaffinity(0, sizeof now, &now) == 0);
    CHECK(CPU_EQUAL(&now, &one));
    REQUIRE(::sched_setaffinity(0, sizeof allowed, &allowed) == 0);
}

} // namespace
} // namespace doppel::cpu::x86::frontend
