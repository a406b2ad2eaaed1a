// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/reset_control.hpp"

namespace doppel::devices {

namespace {
constexpr std::uint8_t SRST = 0x02;
constexpr std::uint8_t RCPU = 0x04;
} // namespace

ResetControl::ResetControl(std::function<void()> on_reset) : on_reset_{std::move(on_reset)} {}

void ResetControl::reset() {
    const base::MutexLock lock{mutex_};
    state_ = {};
}

std::uint64_t ResetControl::io_read(bus::IoAccess) {
    const base::MutexLock lock{mutex_};
    return state_.value;
}

void ResetControl::io_write(bus::IoAccess, std::uint64_t value) {
    bool rose = false;
    {
        const base::MutexLock lock{mutex_};
        rose = (value & ~std::uint64_t{state_.value} & RCPU) != 0;
        state_.value = value & (SRST | RCPU);
    }
    if (rose && on_reset_)
        on_reset_();
}

} // namespace doppel::devices
