// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The table of creation options, shared by create and amend. Any thread.
#include "block/format.hpp"

namespace doppel::block::qcow2 {

std::span<const OptionSpec> create_options();
/// "1.1" → 3, "0.10" → 2.
Result<std::uint32_t> parse_compat(const std::string& compat);

} // namespace doppel::block::qcow2
