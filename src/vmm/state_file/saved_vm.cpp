// SPDX-License-Identifier: Apache-2.0
#include "vmm/state_file/saved_vm.hpp"

#include <fmt/core.h>

namespace doppel::vmm {

using base::Errc;
using base::Result;

Result<void> SavedClocks::validate() const {
    constexpr std::uint64_t kSlowest = 1'000'000, kFastest = 100'000'000'000; // Hz
    if (tsc_hz < kSlowest || tsc_hz > kFastest)
        return base::fail(Errc::Corrupt, fmt::format("a TSC of {} Hz cannot be", tsc_hz));
    constexpr std::uint64_t kLatest = 1ull << 62; // room for what comes after
    if (vm_time_ns > kLatest || wall_seconds > kLatest / 1'000'000'000 ||
        wall_nanoseconds >= 1'000'000'000)
        return base::fail(Errc::Corrupt, "a clock shows what it cannot show");
    return {};
}

std::vector<std::byte> encode_saved_vm(const SavedVm& vm) {
    state::Encoder encoder;
    state::encode(encoder, SavedVm::kSchema, vm);
    return encoder.take();
}

Result<SavedVm> decode_saved_vm(std::span<const std::byte> bytes) {
    state::Decoder decoder{bytes};
    SavedVm vm;
    DOPPEL_TRY_VOID(state::decode(decoder, SavedVm::kSchema, vm));
    if (decoder.remaining() != 0)
        return base::fail(Errc::Corrupt, fmt::format("{} bytes are left over behind the state",
                                                     decoder.remaining()));
    return vm;
}

} // namespace doppel::vmm
