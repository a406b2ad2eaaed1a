// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/direct/user_space.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <doctest/doctest.h>

namespace {

using namespace doppel::cpu::x86;
using frontend::StubProcess;
using frontend::UserSpace;

struct Rig {
    static constexpr std::uint64_t kPlain = 0x401000, kTelling = 0x402000;
    static constexpr int kLong = 700; // visits, when nobody asks for a refusal any more

    Rig() {
        REQUIRE(::ftruncate(ram.get(), 0x4000) == 0);
        REQUIRE(
            users.map_code(kPlain, {.ram_page = 1, .rights = UserSpace::Rights::ReadExecute}, {}));
    }
    void map_telling() {
        const UserSpace::Page page{
            .ram_page = 2, .rights = UserSpace::Rights::ReadExecute, .has_rdtscp = true};
        REQUIRE(users.map_code(kTelling, page, {}));
    }
    void visit(int times) {
        for (int i = 0; i < times; ++i)
            REQUIRE(users.sync([](std::uint64_t, const UserSpace::Page&) { return true; }));
    }

    doppel::base::UniqueFd ram{::memfd_create("ram", MFD_CLOEXEC)};
    UserSpace users{StubProcess::create(ram.get()).value()};
};

} // namespace

TEST_CASE_FIXTURE(Rig,
                  "code with RDTSCP makes the counter refused, until long after its last use") {
    CHECK_FALSE(users.stub().refuses_tsc());
    map_telling();
    CHECK(users.stub().refuses_tsc());
    visit(kLong / 2);
    users.refuse_tsc(); // as it was executed
    visit(kLong / 2);
    CHECK(users.stub().refuses_tsc());
    CHECK(users.has_code(kTelling));
    visit(kLong / 2);
    CHECK_FALSE(users.stub().refuses_tsc());
    CHECK_FALSE(users.has_code(kTelling));
    CHECK(users.has_code(kPlain));
    map_telling();
    CHECK(users.stub().refuses_tsc());
}

TEST_CASE_FIXTURE(Rig, "another process gets no code with RDTSCP, another address space nothing") {
    map_telling();
    visit(1);
    UserSpace other{StubProcess::create(ram.get()).value()};
    other.adopt(users);
    CHECK(other.has_code(kPlain));
    CHECK_FALSE(other.has_code(kTelling));
    CHECK_FALSE(other.stub().refuses_tsc());
    users.start_over();
    CHECK(users.empty());
    CHECK_FALSE(users.stub().refuses_tsc());
}
