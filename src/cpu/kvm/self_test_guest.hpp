// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The code of the self-test's guests: position-independent, for BareGuest. It ends by writing 0
/// (it worked) or 1 (it did not) to kResultPort.
#include <cstddef>
#include <cstdint>

namespace doppel::cpu::kvm::self_test_guest {

inline constexpr std::uint16_t kResultPort = 0x10;
inline constexpr std::uint64_t kSpeedRounds = 300'000, kSpeedInstructions = 3 * kSpeedRounds;

extern "C" {
extern const std::byte doppel_self_test_begin[], doppel_self_test_end[];
// Where each part begins.
extern const std::byte doppel_self_test_int3[], doppel_self_test_sse[], doppel_self_test_xsave[],
    doppel_self_test_sysret[], doppel_self_test_cx16[], doppel_self_test_speed[];
// Handlers.
extern const std::byte doppel_self_test_fail[], doppel_self_test_on_int3[],
    doppel_self_test_on_syscall[];
}

} // namespace doppel::cpu::kvm::self_test_guest
