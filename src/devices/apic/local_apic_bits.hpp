// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Register numbers and bits of the local APIC (Intel SDM Vol. 3A, Sept. 2023, tables 11-1, 11-6).
/// A register's number is its xAPIC offset / 16 and its x2APIC MSR - 800h. Part of LocalApic.
#include <array>
#include <cstdint>

namespace doppel::devices::local_apic {

enum Register : std::uint32_t {
    ID = 0x02,
    VERSION = 0x03,
    TPR = 0x08,
    APR = 0x09,
    PPR = 0x0a,
    EOI = 0x0b,
    RRD = 0x0c,
    LDR = 0x0d,
    DFR = 0x0e,
    SVR = 0x0f,
    ISR0 = 0x10,
    TMR0 = 0x18,
    IRR0 = 0x20,
    ESR = 0x28,
    ICR_LOW = 0x30,
    ICR_HIGH = 0x31,
    LVT_TIMER = 0x32,
    LVT_THERMAL = 0x33,
    LVT_PERFORMANCE = 0x34,
    LVT_LINT0 = 0x35,
    LVT_LINT1 = 0x36,
    LVT_ERROR = 0x37,
    INITIAL_COUNT = 0x38,
    CURRENT_COUNT = 0x39,
    DIVIDE = 0x3e,
    SELF_IPI = 0x3f, // x2APIC only
};

/// Version 14h, six LVT entries, suppression of EOI broadcasts.
inline constexpr std::uint32_t kVersion = 0x0105'0014;

inline constexpr std::uint32_t IA32_APIC_BASE = 0x1b;
inline constexpr std::uint32_t IA32_TSC_DEADLINE = 0x6e0;
inline constexpr std::uint32_t kX2apicMsrs = 0x800;

inline constexpr std::uint64_t kDefaultBase = 0xfee0'0000;
inline constexpr std::uint64_t kBaseBootCpu = 1u << 8;
inline constexpr std::uint64_t kBaseX2apic = 1u << 10;
inline constexpr std::uint64_t kBaseEnable = 1u << 11;
constexpr std::uint64_t writable_base_bits(std::uint8_t physical_address_bits) {
    return (((1ull << physical_address_bits) - 1) & ~0xfffull) | kBaseX2apic | kBaseEnable;
}

inline constexpr std::uint32_t kSvrEnable = 1u << 8;
inline constexpr std::uint32_t kSvrSuppressEoiBroadcast = 1u << 12;
inline constexpr std::uint32_t kSvrBits = 0xff | kSvrEnable | kSvrSuppressEoiBroadcast;
inline constexpr std::uint32_t kDfrFlat = 0xf;
inline constexpr std::uint32_t kLvtMasked = 1u << 16;
/// LVT bits from LVT_THERMAL to LVT_ERROR: vector, mask, and delivery mode, polarity and trigger
/// where there are any.
inline constexpr std::array<std::uint32_t, 5> kLvtBits{0x1'07ff, 0x1'07ff, 0x1'a7ff, 0x1'a7ff,
                                                       0x1'00ff};

inline constexpr std::uint32_t kEsrSendIllegalVector = 1u << 5;
inline constexpr std::uint32_t kEsrReceiveIllegalVector = 1u << 6;
inline constexpr std::uint32_t kEsrIllegalRegister = 1u << 7;

} // namespace doppel::devices::local_apic
