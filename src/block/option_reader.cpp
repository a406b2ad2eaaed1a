// SPDX-License-Identifier: Apache-2.0
#include "block/option_reader.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>

#include <fmt/core.h>

namespace doppel::block {

Result<std::uint64_t> parse_size(std::string_view text) {
    const auto bad = [said = text] {
        return base::fail(Errc::InvalidArgument, fmt::format("'{}' is not a size", said),
                          "Give a number of bytes, with k, M, G, T, P or E behind it if you like.");
    };
    const bool hexadecimal = text.starts_with("0x") || text.starts_with("0X");
    if (hexadecimal)
        text.remove_prefix(2);
    const auto* digits = hexadecimal ? "0123456789abcdefABCDEF" : "0123456789.";
    const auto number_end = std::min(text.find_first_not_of(digits), text.size());
    const auto suffix = text.substr(number_end);
    constexpr std::string_view kSuffixes = "bkmgtpe";
    unsigned shift = 0;
    if (!suffix.empty()) {
        const auto letter = static_cast<char>(suffix[0] | 0x20);
        const auto found = kSuffixes.find(letter);
        const bool rest = suffix.size() == 1 || suffix.substr(1) == "iB" || suffix.substr(1) == "B";
        if (found == std::string_view::npos || !rest)
            return bad();
        shift = static_cast<unsigned>(found) * 10;
    }
    const auto number = text.substr(0, number_end);
    if (number.find('.') == std::string_view::npos) {
        std::uint64_t value = 0;
        const auto [stop, error] =
            std::from_chars(number.begin(), number.end(), value, hexadecimal ? 16 : 10);
        if (error != std::errc{} || stop != number.end() ||
            value > (std::uint64_t{1} << 63) >> shift)
            return bad();
        return value << shift;
    }
    double value = 0;
    const auto [stop, error] = std::from_chars(number.begin(), number.end(), value);
    const auto bytes = std::ldexp(value, static_cast<int>(shift));
    if (error != std::errc{} || stop != number.end() || bytes >= 0x1p63)
        return bad();
    return static_cast<std::uint64_t>(bytes);
}

Result<void> OptionReader::check_names(std::string_view format) const {
    for (const auto& [name, value] : values_) {
        if (std::ranges::find(specs_, name, &OptionSpec::name) != specs_.end())
            continue;
        std::string known;
        for (const auto& spec : specs_)
            known += (known.empty() ? "" : ", ") + std::string{spec.name};
        return base::fail(Errc::InvalidArgument,
                          fmt::format("format {} has no option '{}'", format, name),
                          known.empty() ? "It has none." : fmt::format("It has: {}.", known));
    }
    return {};
}

std::string OptionReader::text(std::string_view name) const {
    if (const auto found = values_.find(name); found != values_.end())
        return found->second;
    const auto spec = std::ranges::find(specs_, name, &OptionSpec::name);
    return spec == specs_.end() ? std::string{} : std::string{spec->standard};
}

Result<std::uint64_t> OptionReader::size(std::string_view name) const {
    auto value = parse_size(text(name));
    if (!value)
        return std::unexpected(
            std::move(value).error().with_context(fmt::format("option {}", name)));
    return value;
}

Result<bool> OptionReader::flag(std::string_view name) const {
    const auto value = text(name);
    if (value == "on" || value == "yes" || value == "true" || value == "y")
        return true;
    if (value == "off" || value == "no" || value == "false" || value == "n" || value.empty())
        return false;
    return base::fail(Errc::InvalidArgument,
                      fmt::format("option {} is '{}', allowed are on and off", name, value));
}

} // namespace doppel::block
