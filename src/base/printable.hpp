// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Foreign text (a name out of an image, a server's answer) for a person's eyes. Any thread.
#include <cstddef>
#include <string>
#include <string_view>

namespace doppel::base {

/// On one line, control characters as \x1b, so that it neither breaks a line nor commands the
/// terminal; of what has then more than `most` bytes the beginning and the end. UTF-8 stays.
std::string printable(std::string_view text, std::size_t most = 1000);

} // namespace doppel::base
