// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/linear_memory.hpp"

#include <doctest/doctest.h>

#include <array>
#include <vector>

#include "cpu/x86/system/test_rig.hpp"

using namespace doppel;
using namespace doppel::cpu::x86;
using namespace doppel::cpu::x86::test;

namespace {

constexpr auto kUser = Privilege::User, kSuper = Privilege::Supervisor;

struct MemoryRig : Rig {
    MemoryRig() { long_mode(); }
    void map(std::uint64_t page, std::uint64_t entry) { put64(kPt + page * 8, entry); }
};

struct Watcher final : memory::CodeWatcher {
    void on_code_write(memory::Gpa gpa, std::uint64_t length, Moment moment) noexcept override {
        calls.push_back({gpa.value, length, moment});
    }
    struct Call {
        std::uint64_t gpa, length;
        Moment moment;
    };
    std::vector<Call> calls;
};

} // namespace

TEST_CASE_FIXTURE(MemoryRig, "an access across pages joins what paging puts elsewhere") {
    map(0x30, 0x50000 | P | RW | US);
    map(0x31, 0x40000 | P | RW | US);
    const std::uint64_t value = 0x8877'6655'4433'2211;
    CHECK(write_linear(*cx, 0x30ffd, &value, 8, kUser));
    CHECK(get<std::uint16_t>(0x50ffd) == 0x2211);
    CHECK(get<std::uint8_t>(0x50fff) == 0x33);
    CHECK(get<std::uint32_t>(0x40000) == 0x77665544);
    std::uint64_t back = 0;
    CHECK(read_linear(*cx, 0x30ffd, &back, 8, kUser));
    CHECK(back == value);
}

TEST_CASE_FIXTURE(MemoryRig, "nothing is written when the second page faults") {
    map(0x31, 0);
    const std::uint64_t value = ~0ull;
    CHECK(faulted(write_linear(*cx, 0x30ffd, &value, 8, kUser), Vector::PF, 6));
    CHECK(cx->fault.cr2 == 0x31000);
    CHECK(get64(0x30ff8) == 0);
    map(0x30, 0); // both are absent: the first is reported (the TLB still has the old one)
    flush_tlb(*cx, {.kind = TlbFlush::Kind::Page, .linear = 0x30000});
    CHECK(faulted(write_linear(*cx, 0x30ffd, &value, 8, kUser), Vector::PF, 6));
    CHECK(cx->fault.cr2 == 0x30ffd);
}

TEST_CASE_FIXTURE(MemoryRig, "the TLB holds translations until they are flushed") {
    std::uint64_t value = 0;
    put64(0x30000, 1);
    put64(0x31000, 2);
    CHECK(load_linear(*cx, 0x30000, value, kUser));
    map(0x30, 0x31000 | P | US);
    CHECK(load_linear(*cx, 0x30000, value, kUser));
    CHECK(value == 1);
    CHECK(invlpg(*cx, 0x30abc));
    CHECK(load_linear(*cx, 0x30000, value, kUser));
    CHECK(value == 2);
}

TEST_CASE_FIXTURE(MemoryRig, "global pages survive a write to CR3, not one to CR4.PGE") {
    std::uint64_t value = 0;
    put64(0x30000, 1);
    put64(0x31000, 2);
    map(0x30, 0x30000 | P | US | G);
    CHECK(load_linear(*cx, 0x30000, value, kUser));
    map(0x30, 0x31000 | P | US);
    CHECK(write_control(*cx, 3, kPml4));
    CHECK(load_linear(*cx, 0x30000, value, kUser));
    CHECK(value == 1);
    CHECK(write_control(*cx, 4, state.cr4 & ~CR4_PGE));
    CHECK(load_linear(*cx, 0x30000, value, kUser));
    CHECK(value == 2);
}

TEST_CASE_FIXTURE(MemoryRig, "PCIDs keep their translations apart; bit 63 keeps them") {
    CHECK(write_control(*cx, 4, state.cr4 | CR4_PCIDE));
    std::uint64_t value = 0;
    put64(0x30000, 1);
    put64(0x31000, 2);
    CHECK(write_control(*cx, 3, kPml4 | 1));
    CHECK(load_linear(*cx, 0x30000, value, kUser)); // PCID 1: page 0x30
    map(0x30, 0x31000 | P | US);
    CHECK(write_control(*cx, 3, kPml4 | 2));
    CHECK(load_linear(*cx, 0x30000, value, kUser));
    CHECK(value == 2);
    CHECK(write_control(*cx, 3, kPml4 | 1 | 1ull << 63));
    CHECK(state.cr3 == (kPml4 | 1));
    CHECK(load_linear(*cx, 0x30000, value, kUser));
    CHECK((value == 1 || value == 2)); // the slot was taken by PCID 2: both are legal
    CHECK(write_control(*cx, 3, kPml4 | 1));
    CHECK(load_linear(*cx, 0x30000, value, kUser));
    CHECK(value == 2);
    map(0x30, 0x30000 | P | US);
    CHECK(load_linear(*cx, 0x30000, value, kUser));
    CHECK(value == 2); // not flushed yet
    CHECK(invpcid(*cx, 1, 1, 0));
    CHECK(load_linear(*cx, 0x30000, value, kUser));
    CHECK(value == 1);
}

TEST_CASE_FIXTURE(MemoryRig, "INVLPG anywhere in a large page flushes all of it") {
    std::uint64_t value = 0;
    put64(0x300000, 7);
    CHECK(load_linear(*cx, 0x300000, value, kUser));
    put64(kPd + 8, 0x400000 | P | RW | US | PS);
    put64(0x500000, 8);
    CHECK(invlpg(*cx, 0x234567));
    CHECK(load_linear(*cx, 0x300000, value, kUser));
    CHECK(value == 8);
}

TEST_CASE_FIXTURE(MemoryRig, "a write to a clean page sets D although reads have cached it") {
    std::uint64_t value = 0;
    CHECK(load_linear(*cx, 0x30000, value, kUser));
    CHECK((get64(kPt + 0x30 * 8) & D) == 0);
    CHECK(store_linear(*cx, 0x30000, value, kUser));
    CHECK((get64(kPt + 0x30 * 8) & D) != 0);
}

TEST_CASE_FIXTURE(MemoryRig, "reading to write back faults as a write") {
    map(0x30, 0x30000 | P | US);
    std::uint32_t value = 0;
    CHECK(
        faulted(read_linear(*cx, 0x30010, &value, 4, kUser, Intent::ReadForWrite), Vector::PF, 7));
}

TEST_CASE_FIXTURE(MemoryRig, "MMIO gets one access of the operand's size") {
    map(0x30, 0x1'0000'0000 | P | RW | US);
    std::uint32_t value = 0;
    CHECK(read_linear(*cx, 0x30010, &value, 4, kSuper));
    CHECK(value == 0x55667788);
    CHECK(board.mmio_reads == 1);
    CHECK(write_linear(*cx, 0x30020, &value, 4, kSuper));
    CHECK(board.mmio.at(0x1'0000'0020) == 0x55667788);
    std::array<std::uint64_t, 4> wide{1, 2, 3, 4};
    CHECK(write_linear(*cx, 0x30040, wide.data(), 32, kSuper));
    CHECK(board.mmio.at(0x1'0000'0058) == 4);
}

TEST_CASE_FIXTURE(MemoryRig, "writes to pages with code tell their owner before and after") {
    Watcher watcher;
    memory->set_code_watcher(&watcher);
    memory->set_code_page({0x30000}, true);
    const std::uint32_t value = 5;
    CHECK(write_linear(*cx, 0x30010, &value, 4, kSuper));
    REQUIRE(watcher.calls.size() == 2);
    CHECK(watcher.calls[0].gpa == 0x30010);
    CHECK(watcher.calls[0].length == 4);
    CHECK(watcher.calls[0].moment == memory::CodeWatcher::Moment::Before);
    CHECK(watcher.calls[1].moment == memory::CodeWatcher::Moment::After);
    CHECK(host_pointer(*cx, 0x30010, 4, AccessType::Write, kSuper) == nullptr);
    CHECK(store_linear(*cx, 0x30010, value, kSuper));
    CHECK(watcher.calls.size() == 4);
}

TEST_CASE_FIXTURE(MemoryRig, "compare and exchange of every size, split and not") {
    for (const std::uint32_t bytes : {1u, 2u, 4u, 8u, 16u})
        for (const std::uint64_t at : {0x30000ull, 0x30fffull}) {
            CAPTURE(bytes);
            const std::uint64_t linear = bytes == 16 && at == 0x30000 ? 0x30010 : at;
            const Wide one{0x0102030405060708, 0x1112131415161718}, two{~0ull, 5};
            CHECK(write_linear(*cx, linear, &one, bytes, kUser));
            Wide expected{0x9999, 0};
            bool swapped = true;
            CHECK(compare_exchange_linear(*cx, linear, bytes, expected, two, swapped, kUser));
            CHECK_FALSE(swapped);
            CHECK(compare_exchange_linear(*cx, linear, bytes, expected, two, swapped, kUser));
            CHECK(swapped);
            Wide back;
            CHECK(read_linear(*cx, linear, &back, bytes, kUser));
            CHECK(back.low == (bytes >= 8 ? ~0ull : (1ull << bytes * 8) - 1));
            CHECK(back.high == (bytes == 16 ? 5 : 0));
        }
}

TEST_CASE_FIXTURE(MemoryRig, "a locked access that swaps nothing still needs the right to write") {
    map(0x30, 0x30000 | P | US);
    Wide expected{1, 0};
    bool swapped = false;
    CHECK(faulted(compare_exchange_linear(*cx, 0x30000, 4, expected, {}, swapped, kUser),
                  Vector::PF, 7));
}

TEST_CASE_FIXTURE(MemoryRig, "a locked access to two cache lines stops the other vCPUs") {
    const auto exchange_at = [&](std::uint64_t linear, std::uint32_t bytes) {
        Wide expected{};
        bool swapped = false;
        CHECK(compare_exchange_linear(*cx, linear, bytes, expected, {}, swapped, kUser));
        CHECK(swapped);
        return std::exchange(board.exclusives, 0u);
    };
    CHECK(exchange_at(0x30038, 8) == 0);
    CHECK(exchange_at(0x30001, 8) == 0);
    CHECK(exchange_at(0x30039, 8) == 1);
    CHECK(exchange_at(0x3003f, 2) == 1);
    CHECK(exchange_at(0x30030, 16) == 0);
}

TEST_CASE_FIXTURE(MemoryRig, "instruction fetch stops at the page and faults on the next") {
    map(0x31, 0x31000 | P | US | NX);
    std::uint8_t bytes[15];
    std::uint32_t got = 0;
    state.cpl = 3;
    CHECK(fetch_linear(*cx, 0x30ffc, bytes, 15, got));
    CHECK(got == 4);
    CHECK(faulted(fetch_linear(*cx, 0x31000, bytes, 11, got), Vector::PF, 0x15));
    CHECK(cx->fault.cr2 == 0x31000);
    CodePage page;
    CHECK(code_page(*cx, 0x30ffc, page));
    CHECK(page.gpa.value == 0x30000);
    CHECK(page.host == memory->engine_page({0x30000}));
}

TEST_CASE_FIXTURE(MemoryRig, "data accesses: canonical, alignment, then paging") {
    std::uint64_t value = 0;
    const auto read = [&](SegmentIndex segment, std::uint64_t offset) {
        return read_data(*cx, segment, offset, &value, 8);
    };
    CHECK(faulted(read(Ds, 0x8000'0000'0000), Vector::GP, 0));
    CHECK(faulted(read(Ss, 0x8000'0000'0000), Vector::SS, 0));
    CHECK(faulted(read(Ds, 0x7fff'ffff'fffc), Vector::GP, 0)); // its last byte
    flat(3, true);
    state.cr0 |= CR0_AM;
    state.rflags |= FLAG_AC;
    map(0x30, 0);
    CHECK(faulted(read(Ds, 0x30001), Vector::AC, 0)); // before #PF, as the CPU does
    CHECK(faulted(read(Ds, 0x8000'0000'0001), Vector::GP, 0));
    CHECK(faulted(read(Ds, 0x30008), Vector::PF, 4));
    state.cpl = 0;
    CHECK(faulted(read(Ds, 0x30001), Vector::PF, 0)); // AC checks are for CPL 3
}

TEST_CASE("legacy segments: type, limit, expand-down, stack faults") {
    Rig rig;
    rig.protect();
    auto& cx = *rig.cx;
    std::uint32_t value = 0;
    const auto read = [&](std::uint64_t offset) { return read_data(cx, Ds, offset, &value, 4); };
    const auto write = [&](std::uint64_t offset) { return write_data(cx, Ds, offset, &value, 4); };
    rig.state.segment[Ds] = {0x30000, 0xfff, 0x60, 0x0093};
    CHECK(read(0xffc));
    CHECK(rig.faulted(read(0xffd), Vector::GP, 0));
    rig.state.segment[Ds].access = 0x0091; // read-only
    CHECK(read(0));
    CHECK(rig.faulted(write(0), Vector::GP, 0));
    rig.state.segment[Ds].access = 0x0099; // execute-only code
    CHECK(rig.faulted(read(0), Vector::GP, 0));
    rig.state.segment[Ds].access = 0x009b; // readable code
    CHECK(read(0));
    CHECK(rig.faulted(write(0), Vector::GP, 0));
    rig.state.segment[Ds].access = 0x0097; // expand-down, 16-bit: 0x1000..0xffff
    CHECK(rig.faulted(read(0xfff), Vector::GP, 0));
    CHECK(read(0x1000));
    CHECK(read(0xfffc));
    CHECK(rig.faulted(read(0xfffd), Vector::GP, 0));
    rig.state.segment[Ds].access = 0x4097; // B: up to 4 GiB
    CHECK(read(0xfffd));
    rig.state.segment[Ds].access = 0x0013; // null
    CHECK(rig.faulted(read(0x1000), Vector::GP, 0));
    rig.state.segment[Ss].limit = 0xfff;
    CHECK(rig.faulted(read_data(cx, Ss, 0x1000, &value, 4), Vector::SS, 0));
}

TEST_CASE_FIXTURE(MemoryRig, "data breakpoints are noted and trap at the instruction's end") {
    state.dr[1] = 0x30010;
    state.dr7 = 0x400 | 1 << 2 | 1 << 20 | 3 << 22; // L1, write, 4 bytes
    std::uint32_t value = 0;
    CHECK(begin_instruction(*cx, kCode));
    CHECK(load_linear(*cx, 0x30010, value, kSuper));
    end_instruction(*cx);
    CHECK(state.pending_debug == 0);
    CHECK(begin_instruction(*cx, kCode));
    CHECK(write_linear(*cx, 0x30012, &value, 1, kSuper));
    end_instruction(*cx);
    CHECK(state.pending_debug == 2);
    state.rip = 0x1234;
    CHECK(service_events(*cx) == Next::Execute);
    CHECK(state.rip == 0x20010); // #DB
    CHECK((state.dr6 & 0xf) == 2);
    CHECK(get64(state.gpr[Rsp]) == 0x1234);
}
