// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/xsave.hpp"

#include <doctest/doctest.h>

#include "cpu/x86/system/test_rig.hpp"

using namespace doppel::cpu::x86;
using namespace doppel::cpu::x86::test;

namespace {

constexpr std::uint64_t kAt = 0x30000; // the image
constexpr std::uint32_t kXstateBv = 512, kXcompBv = 520;

struct XsaveRig : Rig {
    XsaveRig() {
        long_mode();
        state.cr4 |= CR4_OSFXSR | CR4_OSXSAVE;
        state.xcr0 = 7;
        for (std::size_t i = 0; i < XsaveArea::kBytes; ++i)
            state.xsave.bytes[i] = std::byte(i * 5 + 1);
        set<std::uint32_t>(24, 0x1fa0);
        for (std::uint32_t i = 512; i < 576; i += 8)
            set<std::uint64_t>(i, 0);
        set<std::uint64_t>(512, 7);
        state.xsave.bytes[5] = std::byte{0};
        request(7);
    }
    template <typename T> void set(std::uint32_t offset, T value) {
        std::memcpy(state.xsave.bytes.data() + offset, &value, sizeof value);
    }
    template <typename T> T reg(std::uint32_t offset) {
        T value;
        std::memcpy(&value, state.xsave.bytes.data() + offset, sizeof value);
        return value;
    }
    void request(std::uint64_t mask) {
        state.gpr[Rax] = mask;
        state.gpr[Rdx] = 0;
    }
    bool save(XsaveForm form, std::uint64_t at = kAt) { return xsave(*cx, form, Ds, at, 8); }
    bool restore(XrstorForm form = XrstorForm::Xrstor) { return xrstor(*cx, form, Ds, kAt, 8); }
    void wipe() {
        for (std::uint64_t i = 0; i < 1024; i += 8)
            put64(kAt + i, 0xcccc'cccc'cccc'cccc);
    }
};

} // namespace

TEST_CASE_FIXTURE(XsaveRig, "XSAVE and XRSTOR give everything back") {
    put64(kAt + kXstateBv, 0xf0); // bits outside the request stay
    put64(kAt + kXcompBv, 0);
    const auto before = state.xsave.bytes;
    CHECK(save(XsaveForm::Xsave));
    CHECK(get64(kAt + kXstateBv) == 0xf7);
    CHECK(get<std::uint32_t>(kAt + 28) == 0xffff);
    CHECK(get64(kAt + 160) == reg<std::uint64_t>(160));
    CHECK(get64(kAt + 576 + 248) == reg<std::uint64_t>(576 + 248));
    put64(kAt + kXstateBv, 7);
    state.xsave = {};
    CHECK(restore());
    for (const std::uint32_t at : {0u, 8u, 16u, 32u, 152u, 160u, 408u, 512u, 576u, 824u})
        CHECK(reg<std::uint64_t>(at) == [&] {
            std::uint64_t value;
            std::memcpy(&value, before.data() + at, 8);
            return value;
        }());
    CHECK(reg<std::uint32_t>(24) == 0x1fa0);
}

TEST_CASE_FIXTURE(XsaveRig, "a component without its XSTATE_BV bit is initialised") {
    put64(kAt + kXcompBv, 0);
    CHECK(save(XsaveForm::Xsave));
    put64(kAt + kXstateBv, 0);
    CHECK(restore());
    CHECK(reg<std::uint16_t>(0) == 0x37f);
    CHECK(reg<std::uint64_t>(160) == 0);
    CHECK(reg<std::uint64_t>(576) == 0);
    CHECK(reg<std::uint64_t>(512) == 0);
    CHECK(reg<std::uint32_t>(24) == 0x1fa0); // MXCSR comes from the image even so
}

TEST_CASE_FIXTURE(XsaveRig, "XSAVE touches only the requested parts; XSAVEOPT skips unused ones") {
    wipe();
    request(1);
    CHECK(save(XsaveForm::Xsave));
    CHECK(get64(kAt + 160) == 0xcccc'cccc'cccc'cccc);
    CHECK(get<std::uint32_t>(kAt + 24) == 0xcccc'cccc);
    wipe();
    request(7);
    set<std::uint64_t>(512, 1); // only x87 is in use
    CHECK(save(XsaveForm::Xsaveopt));
    CHECK(get64(kAt + 160) == 0xcccc'cccc'cccc'cccc);
    CHECK(get<std::uint32_t>(kAt + 24) == 0x1fa0);
    CHECK((get64(kAt + kXstateBv) & 7) == 1);
    CHECK(save(XsaveForm::Xsave));
    CHECK(get64(kAt + 160) == 0); // the initial value, not what the area happens to hold
}

TEST_CASE_FIXTURE(XsaveRig, "the compacted format of XSAVEC and XSAVES") {
    wipe();
    set<std::uint64_t>(512, 5);
    set<std::uint32_t>(24, 0x1f80);
    CHECK(save(XsaveForm::Xsavec));
    CHECK(get64(kAt + kXstateBv) == 5);
    CHECK(get64(kAt + kXcompBv) == (7 | 1ull << 63));
    CHECK(get64(kAt + 160) == 0xcccc'cccc'cccc'cccc);
    CHECK(get64(kAt + 576) == reg<std::uint64_t>(576));
    set<std::uint32_t>(24, 0x1f00);
    CHECK(save(XsaveForm::Xsavec));
    CHECK(get64(kAt + kXstateBv) == 7); // MXCSR is not at its initial value
    for (std::uint32_t i = 528; i < 576; i += 8)
        put64(kAt + i, 0);
    CHECK(restore(XrstorForm::Xrstors));
    CHECK(restore());
    put64(kAt + kXcompBv, 3 | 1ull << 63); // XSTATE_BV is not a subset
    CHECK(faulted(restore(), Vector::GP, 0));
    put64(kAt + kXcompBv, 0);
    CHECK(faulted(restore(XrstorForm::Xrstors), Vector::GP, 0)); // not compacted
    state.cpl = 3;
    CHECK(faulted(save(XsaveForm::Xsaves), Vector::GP, 0));
}

TEST_CASE_FIXTURE(XsaveRig, "hostile images are #GP(0)") {
    put64(kAt + kXcompBv, 0);
    CHECK(save(XsaveForm::Xsave));
    const auto before = state.xsave.bytes;
    const auto fails = [&](std::uint64_t at, std::uint64_t value) {
        const auto old = get64(at);
        put64(at, value);
        CHECK(faulted(restore(), Vector::GP, 0));
        CHECK(state.xsave.bytes == before);
        put64(at, old);
    };
    fails(kAt + 24, 0x10000);  // MXCSR
    fails(kAt + kXstateBv, 8); // beyond XCR0
    fails(kAt + kXcompBv, 1);  // reserved in the standard format
    fails(kAt + kXcompBv + 8, 1);
    CHECK(restore());
}

TEST_CASE_FIXTURE(XsaveRig, "availability, alignment, privilege of #UD, #NM, #GP, #PF") {
    CHECK(faulted(save(XsaveForm::Xsave, kAt + 16), Vector::GP, 0));
    CHECK(faulted(fxsave(*cx, Ds, kAt + 8, 8), Vector::GP, 0));
    put64(kPt + 0x31 * 8, 0);
    CHECK(faulted(fxsave(*cx, Ds, 0x30f00, 8), Vector::PF, 2));
    state.cr0 |= CR0_TS;
    CHECK(faulted(save(XsaveForm::Xsave), Vector::NM));
    CHECK(faulted(fxsave(*cx, Ds, kAt, 8), Vector::NM));
    state.cr0 |= CR0_EM;
    CHECK(faulted(fxsave(*cx, Ds, kAt, 8), Vector::UD));
    state.cr4 &= ~CR4_OSXSAVE;
    CHECK(faulted(save(XsaveForm::Xsave), Vector::UD));
}

TEST_CASE_FIXTURE(XsaveRig,
                  "FXSAVE: 64-bit and 32-bit pointers, eight registers outside 64-bit mode") {
    set<std::uint64_t>(8, 0xffff'8000'1234'5678);
    wipe();
    CHECK(fxsave(*cx, Ds, kAt, 8));
    CHECK(get64(kAt + 8) == 0xffff'8000'1234'5678);
    CHECK(get64(kAt + 408) == reg<std::uint64_t>(408));
    CHECK(get64(kAt + 416) == 0xcccc'cccc'cccc'cccc);
    CHECK(fxsave(*cx, Ds, kAt, 4));
    CHECK(get64(kAt + 8) == 0x1234'5678);
    wipe();
    flat(0);
    CHECK(fxsave(*cx, Ds, kAt, 4));
    CHECK(get64(kAt + 280) == reg<std::uint64_t>(280));
    CHECK(get64(kAt + 288) == 0xcccc'cccc'cccc'cccc);
    const auto high = reg<std::uint64_t>(288);
    put<std::uint32_t>(kAt + 24, 0x1f80);
    CHECK(fxrstor(*cx, Ds, kAt, 4));
    CHECK(reg<std::uint64_t>(288) == high); // XMM8 keeps its value
    put<std::uint32_t>(kAt + 24, 0x10000);
    CHECK(faulted(fxrstor(*cx, Ds, kAt, 4), Vector::GP, 0));
}
