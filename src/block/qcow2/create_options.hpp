// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The table of creation options, shared by create and amend. Any thread.
#include "block/format.hpp"
#include "block/option_reader.hpp"

namespace doppel::block::qcow2 {

std::span<const OptionSpec> create_options();
/// The base-2 logarithm of refcount_bits.
Result<unsigned> read_refcount_order(const OptionReader& options);
/// "1.1" → 3, "0.10" → 2.
Result<std::uint32_t> parse_compat(const std::string& compat);

} // namespace doppel::block::qcow2
