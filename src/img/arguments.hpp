// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The command line of one img command, against a table of its flags. Short flags bundle (-pq) and
/// take values attached or apart (-fqcow2, -f qcow2); long ones as --name=value or --name value.
/// Any thread.
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace doppel::img {

using base::Errc;
using base::Error;
using base::Result;

struct Flag {
    std::string_view name;  // one letter: -f; longer: --output
    std::string_view value; // what the value is called in the help; empty: takes none
    std::string_view help;
    std::string_view long_name = {}; // of a one-letter flag
};

class Arguments {
public:
    /// Errors: an unknown flag, a value missing or in excess.
    static Result<Arguments> parse(std::span<const char* const> words, std::span<const Flag> flags);

    bool has(std::string_view flag) const { return values_.contains(flag); }
    /// The last value given, or `standard`.
    std::string get(std::string_view flag, std::string standard = {}) const;
    std::vector<std::string> all(std::string_view flag) const;
    /// Names of the flags in the order in which they were given, repetitions too.
    const std::vector<std::string>& order() const noexcept { return order_; }
    const std::vector<std::string>& positional() const noexcept { return positional_; }
    /// Error unless there are as many as that.
    Result<void> expect(std::size_t least, std::size_t most, std::string_view what) const;

private:
    Result<void> parse_long(std::string_view word, std::span<const char* const> words,
                            std::size_t& at, std::span<const Flag> flags);
    Result<void> parse_short(std::string_view word, std::span<const char* const> words,
                             std::size_t& at, std::span<const Flag> flags);

    std::map<std::string, std::vector<std::string>, std::less<>> values_; // by Flag::name
    std::vector<std::string> order_;
    std::vector<std::string> positional_;
};

} // namespace doppel::img
