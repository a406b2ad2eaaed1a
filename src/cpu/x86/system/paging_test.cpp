// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/paging.hpp"

#include <doctest/doctest.h>

#include <chrono>

#include "cpu/x86/system/test_rig.hpp"

using namespace doppel::cpu::x86;
using namespace doppel::cpu::x86::test;

namespace {

constexpr auto kRead = AccessType::Read, kWrite = AccessType::Write, kFetch = AccessType::Execute;
constexpr auto kUser = Privilege::User, kSuper = Privilege::Supervisor,
               kSuperAc = Privilege::SupervisorAc;

struct PagingRig : Rig {
    PagingRig() { long_mode(); }
    void set_leaf(std::uint64_t page, std::uint64_t entry) { put64(kPt + page * 8, entry); }
    bool walk(std::uint64_t linear, AccessType access, Privilege privilege) {
        return translate(*cx, linear, access, privilege, out);
    }
    Translation out;
};

/// One page fault: what the page's entry has, the mode, the access, the error code (-1: none).
struct Case {
    const char* what;
    std::uint64_t entry; // besides the frame
    std::uint64_t cr4;
    bool wp, nxe;
    AccessType access;
    Privilege privilege;
    int error;
};

constexpr Case kCases[] = {
    {"user reads user page", P | US, 0, true, true, kRead, kUser, -1},
    {"user reads kernel page", P, 0, true, true, kRead, kUser, 5},
    {"user writes read-only page", P | US, 0, true, true, kWrite, kUser, 7},
    {"user writes absent page", 0, 0, true, true, kWrite, kUser, 6},
    {"kernel reads absent page", 0, 0, true, true, kRead, kSuper, 0},
    {"kernel writes absent page", RW, 0, true, true, kWrite, kSuper, 2},
    {"kernel writes read-only page, WP", P, 0, true, true, kWrite, kSuper, 3},
    {"kernel writes read-only page, no WP", P, 0, false, true, kWrite, kSuper, -1},
    {"user fetches NX page", P | US | NX, 0, true, true, kFetch, kUser, 0x15},
    {"kernel fetches NX page", P | NX, 0, true, true, kFetch, kSuper, 0x11},
    {"kernel fetches absent page", 0, 0, true, true, kFetch, kSuper, 0x10},
    {"I/D is clear without NXE and SMEP", 0, 0, true, false, kFetch, kSuper, 0},
    {"I/D is set with SMEP alone", 0, CR4_SMEP, true, false, kFetch, kSuper, 0x10},
    {"NX is reserved without NXE", P | US | NX, 0, true, false, kRead, kUser, 0xd},
    {"SMEP: kernel fetches user page", P | US, CR4_SMEP, true, true, kFetch, kSuper, 0x11},
    {"SMEP: kernel fetches kernel page", P, CR4_SMEP, true, true, kFetch, kSuper, -1},
    {"SMEP: user fetches user page", P | US, CR4_SMEP, true, true, kFetch, kUser, -1},
    {"SMAP: kernel reads user page", P | US, CR4_SMAP, true, true, kRead, kSuper, 1},
    {"SMAP: kernel reads user page with AC", P | US, CR4_SMAP, true, true, kRead, kSuperAc, -1},
    {"SMAP: kernel writes user page, no WP", P | US | RW, CR4_SMAP, false, true, kWrite, kSuper, 3},
    {"SMAP: kernel fetches user page", P | US, CR4_SMAP, true, true, kFetch, kSuper, -1},
    {"address bit beyond 40 is reserved", P | US | 1ull << 40, 0, true, true, kRead, kUser, 0xd},
    {"bits 62:52 are ignored", P | US | 0x7ffull << 52, 0, true, true, kRead, kUser, -1},
};

} // namespace

TEST_CASE_FIXTURE(PagingRig, "page faults have the error code of Vol. 3A §4.7") {
    for (const Case& test : kCases) {
        CAPTURE(test.what);
        set_leaf(0x20, 0x20000 | test.entry);
        state.cr4 = CR4_PAE | test.cr4;
        state.cr0 = (state.cr0 & ~CR0_WP) | (test.wp ? CR0_WP : 0);
        state.efer = (state.efer & ~EFER_NXE) | (test.nxe ? EFER_NXE : 0);
        const bool done = walk(0x20123, test.access, test.privilege);
        CHECK(done == (test.error < 0));
        if (!done) {
            CHECK(faulted(done, Vector::PF, static_cast<std::uint32_t>(test.error)));
            CHECK(cx->fault.cr2 == 0x20123);
            CHECK(get64(kPt + 0x20 * 8) == (0x20000 | test.entry)); // no A or D
        } else {
            CHECK(out.gpa.value == 0x20123);
            CHECK((allowed(*cx, out) & permission(test.access, test.privilege)) != 0);
        }
    }
}

TEST_CASE_FIXTURE(PagingRig, "A is set at every level, D only in the leaf of a write") {
    CHECK(walk(0x5000, kRead, kSuper));
    CHECK(get64(kPml4) == (kPdpt | P | RW | US | A));
    CHECK(get64(kPdpt) == (kPd | P | RW | US | A));
    CHECK(get64(kPd) == (kPt | P | RW | US | A));
    CHECK(get64(kPt + 5 * 8) == (0x5000 | P | RW | US | A));
    CHECK_FALSE(out.dirty);
    CHECK((allowed(*cx, out) & permission(kWrite, kSuper)) == 0); // the write must walk again
    CHECK(walk(0x5000, kWrite, kSuper));
    CHECK(get64(kPt + 5 * 8) == (0x5000 | P | RW | US | A | D));
    CHECK(get64(kPd) == (kPt | P | RW | US | A));
    CHECK(out.dirty);
}

TEST_CASE_FIXTURE(PagingRig, "rights are those of all levels together") {
    put64(kPd, kPt | P | US); // not writable
    CHECK(faulted(walk(0x5000, kWrite, kUser), Vector::PF, 7));
    put64(kPd, kPt | P | RW | US);
    put64(kPdpt, kPd | P | RW); // supervisor
    CHECK(faulted(walk(0x5000, kRead, kUser), Vector::PF, 5));
    put64(kPml4, kPdpt | P | RW | US | NX);
    CHECK(faulted(walk(0x5000, kFetch, kSuper), Vector::PF, 0x11));
}

TEST_CASE_FIXTURE(PagingRig, "large pages of 2 MiB and 1 GiB") {
    CHECK(walk(0x2abcde, kRead, kUser));
    CHECK(out.gpa.value == 0x2abcde);
    CHECK(out.page_shift == 21);
    put64(kPd + 8, 0x200000 | P | RW | US | PS | 0x2000); // bit 13 is reserved
    CHECK(faulted(walk(0x2abcde, kRead, kUser), Vector::PF, 0xd));
    put64(kPdpt + 8, 0x4000'0000 | P | RW | US | PS | G);
    CHECK(walk(0x4012'3456, kRead, kUser));
    CHECK(out.gpa.value == 0x4012'3456);
    CHECK(out.page_shift == 30);
    CHECK(out.global);
    put64(kPml4, kPdpt | P | RW | US | PS); // PS is reserved in a PML4E
    CHECK(faulted(walk(0x5000, kRead, kUser), Vector::PF, 0xd));
}

TEST_CASE_FIXTURE(PagingRig, "an entry outside RAM is read from the bus and never written") {
    put64(kPml4 + 8, 0x8000'0000 | P | RW | US);
    CHECK_FALSE(walk(0x80'0000'0000, kRead, kSuper)); // 0x1122…88: not present
    CHECK(board.mmio_reads == 1);
    CHECK(board.mmio.empty());
}

TEST_CASE("2-level paging: PSE, PSE-36, no reserved bits in small entries") {
    Rig rig;
    rig.protect();
    auto& cx = *rig.cx;
    rig.state.cr0 |= CR0_PG;
    rig.state.cr3 = kPml4;
    Translation out;
    rig.put<std::uint32_t>(kPml4 + 4, static_cast<std::uint32_t>(kPt | P | RW | US));
    rig.put<std::uint32_t>(kPt + 4, 0x7000 | P | RW | US);
    CHECK(translate(cx, 0x401234, kWrite, kUser, out));
    CHECK(out.gpa.value == 0x7234);
    CHECK(rig.get<std::uint32_t>(kPt + 4) == (0x7000 | P | RW | US | A | D));
    // A 4-MiB page at 0x12'0080'0000: PDE bits 20:13 are address bits 39:32.
    rig.put<std::uint32_t>(kPml4 + 8, static_cast<std::uint32_t>(0x800000 | P | PS | 0x12 << 13));
    rig.state.cr4 = CR4_PSE;
    CHECK(translate(cx, 0x812345, kRead, kSuper, out));
    CHECK(out.gpa.value == 0x12'0081'2345);
    CHECK(out.page_shift == 22);
    rig.put<std::uint32_t>(kPml4 + 8, 0x800000 | P | PS | 1 << 21); // reserved with 40 bits
    CHECK(rig.faulted(translate(cx, 0x812345, kRead, kSuper, out), Vector::PF, 9));
}

TEST_CASE("PAE paging uses the PDPTE registers, not memory") {
    Rig rig;
    rig.protect();
    auto& cx = *rig.cx;
    Translation out;
    rig.state.cr4 = CR4_PAE;
    rig.put64(kPdpt, kPd | P);
    rig.put64(kPd, kPt | P | RW | US);
    rig.put64(kPt, 0x7000 | P | RW | US);
    CHECK(write_control(cx, 3, kPdpt)); // no paging yet: nothing is loaded
    CHECK(rig.state.pdpte[0] == 0);
    CHECK(write_control(cx, 0, rig.state.cr0 | CR0_PG));
    CHECK(rig.state.pdpte[0] == (kPd | P));
    rig.put64(kPdpt, 0);
    CHECK(translate(cx, 0x123, kRead, kUser, out));
    CHECK(out.gpa.value == 0x7123);
    rig.put64(kPt, 0x7000 | P | RW | US | 1ull << 52); // reserved in PAE entries
    CHECK(rig.faulted(translate(cx, 0x123, kRead, kUser, out), Vector::PF, 0xd));
    CHECK(rig.faulted(translate(cx, 0x4000'0000, kRead, kUser, out), Vector::PF, 4));
    rig.put64(kPdpt + 24, kPd | P | 2); // bit 1 is reserved in a PDPTE
    CHECK(rig.faulted(write_control(cx, 3, kPdpt), Vector::GP, 0));
    CHECK(rig.state.pdpte[0] == (kPd | P));
}

TEST_CASE_FIXTURE(PagingRig, "dirty logging sees the tables' own A and D bits") {
    memory->start_dirty_log();
    CHECK(walk(0x5000, kWrite, kSuper));
    const auto dirty = memory->harvest_dirty_log();
    CHECK((dirty[0] >> (kPt >> 12) & 1) == 1);
    CHECK((dirty[0] >> 5 & 1) == 0); // the page itself was not written
}

// A measurement: run it alone on a quiet machine with --no-skip -tc="*nanoseconds*".
TEST_CASE_FIXTURE(PagingRig, "a walk through hot tables takes few nanoseconds" * doctest::skip()) {
    CHECK(walk(0x5000, kWrite, kSuper));
    constexpr int kRounds = 1'000'000;
    const auto start = std::chrono::steady_clock::now();
    std::uint64_t sum = 0;
    for (int i = 0; i < kRounds; ++i) {
        if (!walk(0x5000 + (i & 0xff8), kRead, kSuper))
            break;
        sum += out.gpa.value;
    }
    const auto ns =
        std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count() /
        kRounds;
    MESSAGE("ns per hot 4-level walk: ", ns, " ", sum);
}
