// SPDX-License-Identifier: Apache-2.0
#include "block/ova/manifest.hpp"

#include <algorithm>
#include <cctype>

#include <fmt/core.h>

namespace doppel::block::ova {

namespace {
constexpr std::string_view kSpaces = " \t\r\n";
}

base::Result<std::vector<DigestLine>> parse_manifest(std::string_view text) {
    std::vector<DigestLine> lines;
    while (!text.empty()) {
        auto line = text.substr(0, text.find('\n'));
        text.remove_prefix(std::min(line.size() + 1, text.size()));
        line = line.substr(0, line.find_last_not_of(kSpaces) + 1);
        if (line.empty())
            continue;
        const auto open = line.find('(');
        const auto close = line.rfind(")=");
        if (open == std::string_view::npos || close == std::string_view::npos || close < open)
            return base::fail(base::Errc::Corrupt,
                              fmt::format("the manifest's line '{}' is not of the form: "
                                          "SHA256(FILE)= DIGEST",
                                          line));
        DigestLine found{std::string{line.substr(0, open)},
                         std::string{line.substr(open + 1, close - open - 1)},
                         std::string{line.substr(close + 2)}};
        found.digest.erase(0, found.digest.find_first_not_of(kSpaces));
        std::erase(found.algorithm, '-');
        std::ranges::transform(found.digest, found.digest.begin(),
                               [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
        lines.push_back(std::move(found));
    }
    return lines;
}

} // namespace doppel::block::ova
