// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/segmentation.hpp"

#include <doctest/doctest.h>

#include "cpu/x86/system/test_rig.hpp"

using namespace doppel::cpu::x86;
using namespace doppel::cpu::x86::test;

namespace {

struct LegacyRig : Rig {
    LegacyRig() { protect(); }
};
struct LongRig : Rig {
    LongRig() { long_mode(); }
};

/// Loading one segment register: -1 works, otherwise vector and error code.
struct Case {
    const char* what;
    unsigned cpl;
    SegmentIndex segment;
    std::uint16_t selector;
    unsigned access;
    int vector;
    std::uint32_t error;
};
constexpr int kGp = 13, kNp = 11, kSs = 12;
constexpr Case kCases[] = {
    {"data", 0, Ds, kFree, 0x92, -1, 0},
    {"read-only data", 0, Ds, kFree, 0x90, -1, 0},
    {"readable code", 0, Ds, kFree, 0x9a, -1, 0},
    {"execute-only code", 0, Ds, kFree, 0x98, kGp, kFree},
    {"system descriptor", 0, Ds, kFree, 0x82, kGp, kFree},
    {"CPL above DPL", 3, Ds, kFree, 0x92, kGp, kFree},
    {"RPL above DPL", 0, Ds, kFree | 3, 0x92, kGp, kFree},
    {"conforming code ignores privilege", 3, Ds, kFree | 3, 0x9e, -1, 0},
    {"data not present", 0, Ds, kFree, 0x12, kNp, kFree},
    {"wrong type before not present", 0, Ds, kFree, 0x18, kGp, kFree},
    {"null data", 3, Ds, 3, 0, -1, 0},
    {"beyond the limit", 0, Ds, 0x1000, 0, kGp, 0x1000},
    {"LDT without one", 0, Ds, kFree | 4, 0, kGp, kFree | 4},
    {"stack", 0, Ss, kFree, 0x92, -1, 0},
    {"null stack", 0, Ss, 0, 0, kGp, 0},
    {"stack read-only", 0, Ss, kFree, 0x90, kGp, kFree},
    {"stack code", 0, Ss, kFree, 0x9a, kGp, kFree},
    {"stack of another DPL", 0, Ss, kFree, 0xf2, kGp, kFree},
    {"stack RPL", 0, Ss, kFree | 1, 0x92, kGp, kFree},
    {"stack not present", 0, Ss, kFree, 0x12, kSs, kFree},
};

} // namespace

TEST_CASE_FIXTURE(LegacyRig, "loading segment registers") {
    for (const Case& test : kCases) {
        CAPTURE(test.what);
        protect(test.cpl);
        set_descriptor(kFree, descriptor(0x12345678, 0x5, test.access, 0xc));
        const Segment before = state.segment[test.segment];
        const bool done = load_segment(*cx, test.segment, test.selector);
        const Segment& after = state.segment[test.segment];
        CHECK(done == (test.vector < 0));
        if (!done) {
            CHECK(faulted(done, static_cast<Vector>(test.vector), test.error));
            CHECK(after.selector == before.selector);
        } else if (test.selector < 4) {
            CHECK_FALSE(after.present());
        } else {
            CHECK(after.base == 0x12345678);
            CHECK(after.limit == 0x5fff);
            CHECK(after.selector == test.selector);
            CHECK(after.access == (0xc000 | test.access | 1));
            CHECK((get64(kGdt + kFree) >> 40 & 1) == 1);
        }
    }
}

TEST_CASE_FIXTURE(LegacyRig, "an LDT works once loaded") {
    put64(kLdt + 8, descriptor(0x5000, 0xff, 0x93, 0x4));
    CHECK(load_ldtr(*cx, kLdtSelector));
    CHECK(state.ldtr.base == kLdt);
    CHECK(load_segment(*cx, Es, 0xc));
    CHECK(state.segment[Es].base == 0x5000);
    CHECK(faulted(load_segment(*cx, Es, 0x104), Vector::GP, 0x104)); // limit 0xff
    CHECK(load_ldtr(*cx, 0));
    CHECK(faulted(load_segment(*cx, Es, 0xc), Vector::GP, 0xc));
    CHECK(faulted(load_ldtr(*cx, kData0), Vector::GP, kData0));
    CHECK(faulted(load_ldtr(*cx, kLdtSelector | 4), Vector::GP, kLdtSelector | 4));
    state.cpl = 3;
    CHECK(faulted(load_ldtr(*cx, kLdtSelector), Vector::GP, 0));
}

TEST_CASE_FIXTURE(LongRig, "LTR and LLDT take 16-byte descriptors in long mode") {
    set_descriptor(kFree, descriptor(0x1000, 0x67, 0x89, 0));
    put64(kGdt + kFree + 8, 0xffff'fe00);
    CHECK(load_tr(*cx, kFree));
    CHECK(state.tr.base == 0xffff'fe00'0000'1000);
    CHECK((state.tr.access & 15) == 11);
    CHECK((get64(kGdt + kFree) >> 40 & 15) == 11);
    CHECK(faulted(load_tr(*cx, kFree), Vector::GP, kFree)); // busy
    CHECK(faulted(load_tr(*cx, 0), Vector::GP, 0));
    set_descriptor(kFree, descriptor(0x1000, 0x67, 0x81, 0)); // 16-bit TSS
    CHECK(faulted(load_tr(*cx, kFree), Vector::GP, kFree));
    set_descriptor(kFree, descriptor(0x1000, 0x67, 0x09, 0));
    CHECK(faulted(load_tr(*cx, kFree), Vector::NP, kFree));
    set_descriptor(kFree, descriptor(0x1000, 0x67, 0x82, 0));
    put64(kGdt + kFree + 8, 0x0001'0000); // not canonical
    CHECK(faulted(load_ldtr(*cx, kFree), Vector::GP, kFree));
}

TEST_CASE_FIXTURE(LongRig, "SS may be null in 64-bit mode below CPL 3") {
    CHECK(load_segment(*cx, Ss, 0));
    CHECK(faulted(load_segment(*cx, Ss, 1), Vector::GP, 0));
    flat(3, true);
    CHECK(faulted(load_segment(*cx, Ss, 3), Vector::GP, 0));
}

TEST_CASE_FIXTURE(LegacyRig, "LAR, LSL, VERR, VERW") {
    struct Probe {
        const char* what;
        unsigned cpl;
        std::uint16_t selector;
        unsigned access;
        bool lar, lsl, verr, verw;
    };
    constexpr Probe probes[] = {
        {"data", 0, kFree, 0x93, true, true, true, true},
        {"read-only", 0, kFree, 0x91, true, true, true, false},
        {"execute-only", 0, kFree, 0x99, true, true, false, false},
        {"privileged data from CPL 3", 3, kFree, 0x93, false, false, false, false},
        {"conforming from CPL 3", 3, kFree | 3, 0x9f, true, true, true, false},
        {"RPL", 0, kFree | 3, 0x93, false, false, false, false},
        {"null", 0, 0, 0x93, false, false, false, false},
        {"outside", 0, 0x1000, 0x93, false, false, false, false},
        {"LDT", 0, kFree, 0x82, true, true, false, false},
        {"call gate", 0, kFree, 0x8c, true, false, false, false},
        {"interrupt gate", 0, kFree, 0x8e, false, false, false, false},
        {"not present data", 0, kFree, 0x13, true, true, true, true},
    };
    for (const Probe& probe : probes) {
        CAPTURE(probe.what);
        protect(probe.cpl);
        set_descriptor(kFree, descriptor(0, 0x12345, probe.access, 0xc));
        bool valid = false;
        std::uint32_t result = 0;
        CHECK(load_access_rights(*cx, probe.selector, valid, result));
        CHECK(valid == probe.lar);
        if (valid)
            CHECK(result == (0x00c0'0000 | probe.access << 8));
        CHECK(load_segment_limit(*cx, probe.selector, valid, result));
        CHECK(valid == probe.lsl);
        if (valid)
            CHECK(result == 0x12345fff);
        CHECK(verify_segment(*cx, probe.selector, AccessType::Read, valid));
        CHECK(valid == probe.verr);
        CHECK(verify_segment(*cx, probe.selector, AccessType::Write, valid));
        CHECK(valid == probe.verw);
    }
}

TEST_CASE("real mode keeps limits; V86 mode does not") {
    Rig rig;
    auto& state = rig.state;
    state.segment[Ds].limit = 0xffffffff;
    CHECK(load_segment(*rig.cx, Ds, 0x1234));
    CHECK(state.segment[Ds].base == 0x12340);
    CHECK(state.segment[Ds].limit == 0xffffffff); // unreal mode
    state.cr0 |= CR0_PE;
    state.rflags |= FLAG_VM;
    state.cpl = 3;
    CHECK(load_segment(*rig.cx, Ds, 0x4321));
    CHECK(state.segment[Ds].limit == 0xffff);
    CHECK(state.segment[Ds].dpl() == 3);
}

TEST_CASE_FIXTURE(LongRig, "FSGSBASE, SWAPGS and UMIP") {
    std::uint64_t value = 0;
    CHECK(faulted(read_segment_base(*cx, Fs, value), Vector::UD));
    CHECK(write_control(*cx, 4, state.cr4 | CR4_FSGSBASE | CR4_UMIP));
    CHECK(write_segment_base(*cx, Gs, 0xffff'8000'0000'0000));
    CHECK(faulted(write_segment_base(*cx, Gs, 1ull << 47), Vector::GP, 0));
    state.kernel_gs_base = 0x7fff'0000;
    CHECK(swapgs(*cx));
    CHECK(state.segment[Gs].base == 0x7fff'0000);
    CHECK(state.kernel_gs_base == 0xffff'8000'0000'0000);
    CHECK(check_umip(*cx));
    state.cpl = 3;
    CHECK(faulted(check_umip(*cx), Vector::GP, 0));
    CHECK(faulted(swapgs(*cx), Vector::GP, 0));
}
