// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Between ApicImage and KVM's page of local-APIC registers (KVM_GET_LAPIC with
/// KVM_X2APIC_API_USE_32BIT_IDS). Pure functions; any thread.
#include <linux/kvm.h>

#include <cstdint>

#include "cpu/apic_host.hpp"

namespace doppel::cpu::kvm {

kvm_lapic_state to_lapic(const ApicImage& image);
ApicImage from_lapic(const kvm_lapic_state& lapic);

/// An interrupt that the APIC has handed out and the CPU has not begun: requested again instead of
/// in service. False: the vector was not in service here (it came from the PIC).
bool take_back(ApicImage& image, std::uint8_t vector);

/// A one-shot count of the timer is under way.
bool timer_counts(const ApicImage& image);
/// A one-shot count has come to its end, and its interrupt is neither requested nor in service: it
/// was delivered long ago, or the kernel has not yet looked.
bool timer_ended_silently(const ApicImage& image);
/// The timer's interrupt is requested.
void request_timer(ApicImage& image);

} // namespace doppel::cpu::kvm
