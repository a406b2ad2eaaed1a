// SPDX-License-Identifier: Apache-2.0
/// JSON that claims to describe a machine: refused, or accepted with a form that reads back alike.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "api/machine_json.hpp"

using namespace doppel;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text{reinterpret_cast<const char*>(data), size};
    const auto machine = api::machine_from_json(text);
    if (!machine)
        return 0;
    const auto written = api::machine_to_json(*machine);
    const auto again = api::machine_from_json(written);
    if (!again || api::machine_to_json(*again) != written)
        std::abort();
    return 0;
}
