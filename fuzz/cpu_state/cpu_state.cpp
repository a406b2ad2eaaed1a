// SPDX-License-Identifier: Apache-2.0
/// A saved vCPU is foreign bytes: whatever they are, loading ends in an error or in a state that
/// saves to the same bytes again. First input byte even: the rest is the state; odd: the rest are
/// patches (u16 position, u8 value) to a valid one, so that the fields' own checks are reached.
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "cpu/x86/cpu_state_schema.hpp"

using namespace doppel;

namespace {

std::vector<std::byte> saved(const cpu::x86::CpuState& state) {
    state::Encoder to;
    cpu::x86::save_cpu_state(to, state);
    return to.take();
}

std::vector<std::byte> patched(const std::uint8_t* data, std::size_t size) {
    cpu::x86::CpuState valid;
    valid.cr0 = cpu::x86::CR0_ET;
    valid.xsave.bytes[24] = std::byte{0x80};
    valid.xsave.bytes[25] = std::byte{0x1f};
    auto bytes = saved(valid);
    for (; size >= 3; data += 3, size -= 3) {
        const std::size_t at = static_cast<std::size_t>(data[0]) | static_cast<std::size_t>(data[1])
                                                                       << 8;
        bytes[at % bytes.size()] = std::byte{data[2]};
    }
    return bytes;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0)
        return 0;
    std::vector<std::byte> bytes;
    if (data[0] % 2 != 0) {
        bytes = patched(data + 1, size - 1);
    } else {
        const auto* start = reinterpret_cast<const std::byte*>(data + 1);
        bytes.assign(start, start + size - 1);
    }
    state::Decoder from{bytes};
    cpu::x86::CpuState state;
    if (!cpu::x86::load_cpu_state(from, state))
        return 0;
    const auto first = saved(state);
    state::Decoder again{first};
    cpu::x86::CpuState copy;
    if (!cpu::x86::load_cpu_state(again, copy) || saved(copy) != first)
        std::abort();
    return 0;
}
