// SPDX-License-Identifier: Apache-2.0
/// A guest that tries everything on one device, and a saved state that somebody else wrote.
/// Input: which device, then steps of one byte and what it needs. Nothing may crash or hang; a
/// state that is accepted must save to bytes that load and save alike.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "base/log.hpp"
#include "devices/state_test_list.hpp"
#include "fuzz/input.hpp"

using namespace doppel;
using namespace doppel::devices::test;
using doppel::fuzz::Input;

namespace {

void touch(Subject& subject, Input& input, bool write) {
    if (subject.ranges.empty())
        return;
    const auto& range = subject.ranges[input.number(1) % subject.ranges.size()];
    const auto size =
        static_cast<std::uint8_t>(range.min_size << (input.number(1) % range.size_steps));
    const auto offset =
        range.bytes <= size ? 0 : input.number(2) % (range.bytes / size) * std::uint64_t{size};
    if (write)
        range.handler->io_write({offset, size}, input.number(size));
    else
        range.handler->io_read({offset, size});
}

std::vector<std::byte> saved(const devices::Device& device) {
    state::Encoder encoder;
    device.save(encoder);
    return encoder.take();
}

void load(devices::Device& device, std::span<const std::byte> bytes) {
    state::Decoder decoder{bytes};
    if (!device.load(decoder))
        return;
    const auto first = saved(device);
    state::Decoder again{first};
    if (!device.load(again) || saved(device) != first)
        std::abort();
}

void step(Subject& subject, World& world, Input& input) {
    switch (input.number(1) % 8) {
    case 0:
    case 1: touch(subject, input, false); break;
    case 2: world.time.advance_to(world.time.now_ns() + input.number(4)); break;
    case 3: subject.device->reset(); break;
    case 4: load(*subject.device, input.all()); break;
    default: touch(subject, input, true); break;
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    base::set_log_level(base::LogLevel::Off);
    static const auto devices = all_devices();
    Input input{std::as_bytes(std::span{data, size})};
    World world;
    auto subject = devices[input.number(1) % devices.size()].make(world);
    while (!input.empty())
        step(subject, world, input);
    return 0;
}
