// SPDX-License-Identifier: Apache-2.0
#include "block/vmdk/descriptor.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>

#include <fmt/core.h>

namespace doppel::block::vmdk {

namespace {

constexpr std::string_view kFirstLine = "# disk descriptorfile";
constexpr std::string_view kSpaces = " \t\r\n";

std::string_view trim(std::string_view text) {
    const auto first = text.find_first_not_of(kSpaces);
    if (first == std::string_view::npos)
        return {};
    return text.substr(first, text.find_last_not_of(kSpaces) - first + 1);
}

bool same(std::string_view a, std::string_view b) {
    return std::ranges::equal(a, b, [](char x, char y) {
        return std::tolower(static_cast<unsigned char>(x)) ==
               std::tolower(static_cast<unsigned char>(y));
    });
}

std::vector<std::string_view> lines_of(std::string_view text) {
    std::vector<std::string_view> lines;
    while (!text.empty()) {
        const auto end = std::min(text.find('\n'), text.size() - 1) + 1;
        lines.push_back(text.substr(0, end));
        text.remove_prefix(end);
    }
    return lines;
}

std::string_view key_of(std::string_view line) {
    line = trim(line);
    const auto equals = line.find('=');
    return line.starts_with('#') || equals == std::string_view::npos ? std::string_view{}
                                                                     : trim(line.substr(0, equals));
}

std::string_view value_of(std::string_view line) {
    auto value = trim(line.substr(line.find('=') + 1));
    if (value.size() >= 2 && value.starts_with('"') && value.ends_with('"'))
        value = value.substr(1, value.size() - 2);
    return value;
}

template <typename T> std::optional<T> number(std::string_view text, int base) {
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (error != std::errc{} || end != text.data() + text.size())
        return std::nullopt;
    return value;
}

/// The next word, or what stands between quotation marks.
std::string_view take_word(std::string_view& rest) {
    rest = trim(rest);
    if (rest.starts_with('"')) {
        const auto end = rest.find('"', 1);
        const auto word = rest.substr(1, end == std::string_view::npos ? end : end - 1);
        rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
        return word;
    }
    const auto word = rest.substr(0, rest.find_first_of(kSpaces));
    rest.remove_prefix(word.size());
    return word;
}

bool is_extent(std::string_view line) {
    const auto word = take_word(line);
    return same(word, "RW") || same(word, "RDONLY") || same(word, "NOACCESS");
}

std::string upper(std::string_view text) {
    std::string result{text};
    std::ranges::transform(result, result.begin(),
                           [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    return result;
}

Result<ExtentLine> parse_extent(std::string_view line) {
    const auto wrong = [&] {
        return base::fail(
            Errc::Corrupt,
            fmt::format("the extent '{}' is not of the form: RW SECTORS TYPE \"FILE\" "
                        "OFFSET",
                        trim(line)));
    };
    auto rest = line;
    ExtentLine extent;
    extent.access = upper(take_word(rest));
    const auto sectors = number<std::uint64_t>(take_word(rest), 10);
    extent.type = upper(take_word(rest));
    extent.file = take_word(rest);
    const auto offset_text = take_word(rest);
    const auto offset =
        offset_text.empty() ? std::uint64_t{0} : number<std::uint64_t>(offset_text, 10);
    constexpr auto kMax = std::uint64_t{1} << 40;
    if (!sectors || *sectors > kMax || !offset || *offset > kMax || extent.type.empty() ||
        (extent.file.empty() && extent.type != "ZERO"))
        return wrong();
    extent.sectors = *sectors;
    extent.offset_sectors = *offset;
    return extent;
}

Result<std::uint32_t> parse_cid(std::string_view key, std::string_view value) {
    const auto cid = number<std::uint32_t>(value, 16);
    if (!cid)
        return base::fail(Errc::Corrupt,
                          fmt::format("{} is '{}', not a hexadecimal number", key, value));
    return *cid;
}

} // namespace

bool is_descriptor(std::span<const std::byte> head) {
    const std::string_view text{reinterpret_cast<const char*>(head.data()), head.size()};
    for (const auto line : lines_of(text)) {
        if (same(trim(line), kFirstLine))
            return true;
        if (!trim(line).empty() && !trim(line).starts_with('#'))
            return false;
    }
    return false;
}

Result<Descriptor> parse_descriptor(std::span<const std::byte> bytes) {
    std::string_view text{reinterpret_cast<const char*>(bytes.data()), bytes.size()};
    text = text.substr(0, text.find('\0'));
    if (!is_descriptor(bytes.first(text.size())))
        return base::fail(Errc::Corrupt, "there is no VMDK descriptor");
    Descriptor descriptor;
    descriptor.text = text;
    bool has_cid = false;
    for (const auto line : lines_of(text)) {
        const auto key = key_of(line);
        if (same(key, "CID")) {
            descriptor.cid = DOPPEL_TRY(parse_cid(key, value_of(line)));
            has_cid = true;
        } else if (same(key, "parentCID")) {
            descriptor.parent_cid = DOPPEL_TRY(parse_cid(key, value_of(line)));
        } else if (same(key, "createType")) {
            descriptor.create_type = value_of(line);
        } else if (same(key, "parentFileNameHint")) {
            descriptor.parent = value_of(line);
        } else if (is_extent(line)) {
            descriptor.extents.push_back(DOPPEL_TRY(parse_extent(line)));
        }
        if (descriptor.extents.size() > kMaxExtents)
            return base::fail(
                Errc::Corrupt,
                fmt::format("the descriptor names more than {} extents", kMaxExtents));
    }
    if (!has_cid || descriptor.create_type.empty())
        return base::fail(Errc::Corrupt,
                          fmt::format("the descriptor has no {}", has_cid ? "createType" : "CID"));
    return descriptor;
}

std::string quoted(std::string_view value) { return fmt::format("\"{}\"", value); }
std::string cid_text(std::uint32_t cid) { return fmt::format("{:08x}", cid); }

std::string extent_text(const ExtentLine& extent) {
    auto line = fmt::format("{} {} {}", extent.access, extent.sectors, extent.type);
    if (extent.type != "ZERO")
        line += ' ' + quoted(extent.file);
    if (extent.type == "FLAT" || extent.type == "VMFS")
        line += fmt::format(" {}", extent.offset_sectors);
    return line + '\n';
}

std::string with_value(const std::string& text, std::string_view key, std::string_view value) {
    std::string result;
    bool done = false;
    const auto put = [&] {
        result += fmt::format("{}{}{}\n", key, key.starts_with("ddb.") ? " = " : "=", value);
        done = true;
    };
    for (const auto line : lines_of(text)) {
        if (same(key_of(line), key))
            put();
        else
            result += line;
    }
    if (done)
        return result;
    result.clear();
    for (const auto line : lines_of(text)) {
        result += line;
        if (same(key_of(line), "parentCID") && !key.starts_with("ddb."))
            put();
    }
    if (!done)
        put();
    return result;
}

std::string without(const std::string& text, std::string_view key) {
    std::string result;
    for (const auto line : lines_of(text))
        if (!same(key_of(line), key))
            result += line;
    return result;
}

std::string with_extents(const std::string& text, const std::vector<ExtentLine>& extents) {
    std::string result;
    bool done = false;
    for (const auto line : lines_of(text)) {
        if (!is_extent(line)) {
            result += line;
            continue;
        }
        if (!std::exchange(done, true))
            for (const auto& extent : extents)
                result += extent_text(extent);
    }
    return result;
}

} // namespace doppel::block::vmdk
