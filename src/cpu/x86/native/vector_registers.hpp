// SPDX-License-Identifier: Apache-2.0
#pragma once
/// x87, XMM and YMM state inside an XsaveArea (standard format, Intel SDM Vol. 1 §13.4), where a
/// component whose XSTATE_BV bit is clear has its initial value whatever its bytes are.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/x86/cpu_state.hpp"

namespace doppel::cpu::x86::native {

class VectorRegisters {
public:
    static constexpr std::size_t kFcw = 0, kFsw = 2, kFtw = 4, kFop = 6, kFip = 8, kFdp = 16,
                                 kMxcsr = 24, kSt = 32, kXmm = 160, kXstateBv = 512, kYmmHigh = 576;
    static constexpr std::uint64_t kX87 = 1, kSse = 2, kAvx = 4;
    using Bytes = std::array<std::uint8_t, 32>;

    explicit VectorRegisters(XsaveArea& area) : area_{area} {}

    template <typename T> T get(std::size_t offset) const {
        T value;
        std::memcpy(&value, area_.bytes.data() + offset, sizeof value);
        return value;
    }
    template <typename T> void set(std::size_t offset, T value) {
        std::memcpy(area_.bytes.data() + offset, &value, sizeof value);
    }

    Bytes ymm(unsigned number) const {
        Bytes bytes{};
        if ((get<std::uint64_t>(kXstateBv) & kSse) != 0)
            std::memcpy(bytes.data(), area_.bytes.data() + kXmm + 16 * number, 16);
        if ((get<std::uint64_t>(kXstateBv) & kAvx) != 0)
            std::memcpy(bytes.data() + 16, area_.bytes.data() + kYmmHigh + 16 * number, 16);
        return bytes;
    }
    void set_ymm(unsigned number, const Bytes& bytes) {
        make_valid(kSse, kXmm);
        make_valid(kAvx, kYmmHigh);
        std::memcpy(area_.bytes.data() + kXmm + 16 * number, bytes.data(), 16);
        std::memcpy(area_.bytes.data() + kYmmHigh + 16 * number, bytes.data() + 16, 16);
    }
    /// MMn is the x87's physical register n; the area holds them from the top of the stack on.
    std::uint64_t mmx(unsigned number) const {
        if ((get<std::uint64_t>(kXstateBv) & kX87) == 0)
            return 0;
        const unsigned top = fsw() >> 11 & 7;
        return get<std::uint64_t>(kSt + 16 * ((number - top) & 7));
    }
    /// What every MMX instruction does to the x87: TOP = 0, all registers hold something.
    void enter_mmx() {
        make_x87_valid();
        const unsigned top = fsw() >> 11 & 7;
        std::array<std::byte, 128> stack;
        for (unsigned physical = 0; physical < 8; ++physical)
            std::memcpy(stack.data() + 16 * physical,
                        area_.bytes.data() + kSt + 16 * ((physical - top) & 7), 16);
        std::memcpy(area_.bytes.data() + kSt, stack.data(), stack.size());
        set<std::uint16_t>(kFsw, fsw() & 0xc7ff);
        set<std::uint8_t>(kFtw, 0xff);
    }
    /// An unmasked x87 exception waits to be raised.
    bool x87_exception_pending() const { return (fsw() & 0x80) != 0; }
    std::uint16_t fcw() const { return x87(kFcw, 0x37f); }
    std::uint16_t fsw() const { return x87(kFsw, 0); }

    /// The x87 component counts from now on, with its initial values where it did not before.
    void make_x87_valid() {
        if ((get<std::uint64_t>(kXstateBv) & kX87) != 0)
            return;
        std::memset(area_.bytes.data(), 0, kMxcsr);
        std::memset(area_.bytes.data() + kSt, 0, 128);
        set<std::uint16_t>(kFcw, 0x37f);
        set<std::uint64_t>(kXstateBv, get<std::uint64_t>(kXstateBv) | kX87);
    }

private:
    std::uint16_t x87(std::size_t offset, std::uint16_t initial) const {
        return (get<std::uint64_t>(kXstateBv) & kX87) != 0 ? get<std::uint16_t>(offset) : initial;
    }
    void make_valid(std::uint64_t component, std::size_t offset) {
        const auto valid = get<std::uint64_t>(kXstateBv);
        if ((valid & component) == 0) {
            std::memset(area_.bytes.data() + offset, 0, 256);
            set<std::uint64_t>(kXstateBv, valid | component);
        }
    }

    XsaveArea& area_;
};

} // namespace doppel::cpu::x86::native
