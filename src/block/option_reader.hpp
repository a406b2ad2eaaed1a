// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Creation options as values, against a format's table. Any thread.
#include "block/format.hpp"

namespace doppel::block {

/// "64k", "1G", "512": a number of bytes with an optional suffix (b k M G T P E), QEMU's way; a
/// fraction may stand before a suffix ("1.5G").
Result<std::uint64_t> parse_size(std::string_view text);

class OptionReader {
public:
    OptionReader(std::span<const OptionSpec> specs, const OptionValues& values)
        : specs_{specs}, values_{values} {}

    /// Error InvalidArgument: an option that the format does not have; lists those it has.
    Result<void> check_names(std::string_view format) const;
    bool given(std::string_view name) const { return values_.contains(name); }
    /// The value, or the table's standard value.
    std::string text(std::string_view name) const;
    Result<std::uint64_t> size(std::string_view name) const;
    Result<bool> flag(std::string_view name) const; // on, off

private:
    std::span<const OptionSpec> specs_;
    const OptionValues& values_;
};

} // namespace doppel::block
