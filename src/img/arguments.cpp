// SPDX-License-Identifier: Apache-2.0
#include "img/arguments.hpp"

#include <algorithm>

#include <fmt/core.h>

namespace doppel::img {

namespace {

std::unexpected<Error> bad(std::string text) {
    return base::fail(Errc::InvalidArgument, std::move(text));
}

Result<std::string> next_word(std::span<const char* const> words, std::size_t& at,
                              std::string_view flag) {
    if (at + 1 >= words.size())
        return bad(fmt::format("{} wants a value", flag));
    return std::string{words[++at]};
}

/// A flag whose value is called "human|json" takes one of these.
Result<void> check_value(const Flag& flag, std::string_view value) {
    if (flag.value.find('|') == std::string_view::npos)
        return {};
    for (std::size_t begin = 0; begin <= flag.value.size();) {
        const auto end = std::min(flag.value.find('|', begin), flag.value.size());
        if (flag.value.substr(begin, end - begin) == value)
            return {};
        begin = end + 1;
    }
    return bad(fmt::format("-{}{} is '{}', allowed {}", flag.name.size() > 1 ? "-" : "", flag.name,
                           value, flag.value));
}

} // namespace

Result<void> Arguments::parse_long(std::string_view word, std::span<const char* const> words,
                                   std::size_t& at, std::span<const Flag> flags) {
    const auto equals = word.find('=');
    const auto name = word.substr(2, equals == std::string_view::npos ? equals : equals - 2);
    const auto flag = std::ranges::find_if(flags, [&](const Flag& f) {
        return (f.name.size() > 1 && f.name == name) ||
               (!f.long_name.empty() && f.long_name == name);
    });
    if (flag == flags.end())
        return bad(fmt::format("there is no option '{}'", word.substr(0, equals)));
    auto& values = values_[order_.emplace_back(flag->name)];
    if (flag->value.empty()) {
        if (equals != std::string_view::npos)
            return bad(fmt::format("--{} takes no value", name));
        values.emplace_back();
    } else if (equals != std::string_view::npos) {
        values.emplace_back(word.substr(equals + 1));
    } else {
        values.push_back(DOPPEL_TRY(next_word(words, at, word)));
    }
    return {};
}

Result<void> Arguments::parse_short(std::string_view word, std::span<const char* const> words,
                                    std::size_t& at, std::span<const Flag> flags) {
    for (std::size_t i = 1; i < word.size(); ++i) {
        const auto flag = std::ranges::find(flags, word.substr(i, 1), &Flag::name);
        if (flag == flags.end())
            return bad(fmt::format("there is no option '-{}'", word[i]));
        auto& values = values_[order_.emplace_back(flag->name)];
        if (flag->value.empty()) {
            values.emplace_back();
            continue;
        }
        if (i + 1 < word.size())
            values.emplace_back(word.substr(i + 1));
        else
            values.push_back(DOPPEL_TRY(next_word(words, at, fmt::format("-{}", word[i]))));
        return {};
    }
    return {};
}

Result<Arguments> Arguments::parse(std::span<const char* const> words,
                                   std::span<const Flag> flags) {
    Arguments arguments;
    bool only_names = false;
    for (std::size_t at = 0; at < words.size(); ++at) {
        const std::string_view word = words[at];
        // "-1G" is a size, not flags: resize FILE -1G.
        const bool number = word.size() > 1 && word[1] >= '0' && word[1] <= '9';
        if (only_names || word.size() < 2 || word[0] != '-' || number)
            arguments.positional_.emplace_back(word);
        else if (word == "--")
            only_names = true;
        else if (word[1] == '-')
            DOPPEL_TRY_VOID(arguments.parse_long(word, words, at, flags));
        else
            DOPPEL_TRY_VOID(arguments.parse_short(word, words, at, flags));
    }
    for (const auto& flag : flags)
        for (const auto& value : arguments.all(flag.name))
            DOPPEL_TRY_VOID(check_value(flag, value));
    return arguments;
}

std::string Arguments::get(std::string_view flag, std::string standard) const {
    const auto found = values_.find(flag);
    return found == values_.end() ? std::move(standard) : found->second.back();
}

std::vector<std::string> Arguments::all(std::string_view flag) const {
    const auto found = values_.find(flag);
    return found == values_.end() ? std::vector<std::string>{} : found->second;
}

Result<void> Arguments::expect(std::size_t least, std::size_t most, std::string_view what) const {
    if (positional_.size() >= least && positional_.size() <= most)
        return {};
    return bad(fmt::format("{} {} given, wanted: {}", positional_.size(),
                           positional_.size() == 1 ? "name is" : "names are", what));
}

} // namespace doppel::img
