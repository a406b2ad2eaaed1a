// SPDX-License-Identifier: Apache-2.0
#pragma once
/// JSON form of the machine description. Unknown members, wrong types and values out of range are
/// errors that name the member's path ("boot.kernel"). Any thread.
#include <string>
#include <string_view>

#include "base/result.hpp"
#include "description/machine.hpp"

namespace doppel::api {

/// Indented, every member present, ends with a newline: what `doppel run --dry-run` prints.
std::string machine_to_json(const description::Machine& machine);

/// Members that are absent keep their default. The result is validated.
base::Result<description::Machine> machine_from_json(std::string_view text);

} // namespace doppel::api
