// SPDX-License-Identifier: Apache-2.0
#include "block/ova/ovf.hpp"

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>

#include <fmt/core.h>

namespace doppel::block::ova {

using base::Errc;
using base::Result;

namespace {

constexpr std::string_view kSpaces = " \t\r\n";
constexpr std::size_t kMaxDisks = 256;

using Attributes = std::map<std::string, std::string, std::less<>>;
struct Element {
    std::string name; // without prefix
    Attributes attributes;
    std::string get(std::string_view key) const {
        const auto found = attributes.find(key);
        return found == attributes.end() ? std::string{} : found->second;
    }
};

std::string_view without_prefix(std::string_view name) {
    const auto colon = name.rfind(':');
    return colon == std::string_view::npos ? name : name.substr(colon + 1);
}

void append_utf8(std::string& text, std::uint32_t code) {
    const auto put = [&](std::uint32_t byte) { text += static_cast<char>(byte); };
    if (code < 0x80)
        return put(code);
    if (code < 0x800)
        return put(0xc0 | code >> 6), put(0x80 | (code & 0x3f));
    if (code < 0x10000)
        return put(0xe0 | code >> 12), put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
    put(0xf0 | (code >> 18 & 7));
    put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
}

std::string decode(std::string_view text) {
    static const std::map<std::string_view, char> kEntities{
        {"amp", '&'}, {"lt", '<'}, {"gt", '>'}, {"quot", '"'}, {"apos", '\''}};
    std::string result;
    for (std::size_t at = 0; at < text.size();) {
        const auto end = text[at] == '&' ? text.find(';', at) : std::string_view::npos;
        if (end == std::string_view::npos) {
            result += text[at++];
            continue;
        }
        const auto name = text.substr(at + 1, end - at - 1);
        if (const auto known = kEntities.find(name); known != kEntities.end()) {
            result += known->second;
        } else if (name.starts_with('#')) {
            const bool hex = name.starts_with("#x");
            const auto digits = name.substr(hex ? 2 : 1);
            std::uint32_t code = 0;
            std::from_chars(digits.data(), digits.data() + digits.size(), code, hex ? 16 : 10);
            append_utf8(result, code);
        }
        at = end + 1;
    }
    return result;
}

std::string_view trim_front(std::string_view text) {
    return text.substr(std::min(text.find_first_not_of(kSpaces), text.size()));
}

/// name a="b" c='d'
std::optional<Element> parse_tag(std::string_view tag) {
    const auto name = tag.substr(0, tag.find_first_of(" \t\r\n/"));
    Element element{std::string{without_prefix(name)}, {}};
    auto rest = trim_front(tag.substr(name.size()));
    while (!rest.empty() && rest != "/") {
        const auto equals = rest.find('=');
        if (equals == std::string_view::npos)
            return std::nullopt;
        auto key = rest.substr(0, equals);
        key = key.substr(0, key.find_first_of(kSpaces));
        rest = trim_front(rest.substr(equals + 1));
        if (rest.empty() || (rest[0] != '"' && rest[0] != '\''))
            return std::nullopt;
        const auto end = rest.find(rest[0], 1);
        if (end == std::string_view::npos)
            return std::nullopt;
        element.attributes[std::string{without_prefix(key)}] = decode(rest.substr(1, end - 1));
        rest = trim_front(rest.substr(end + 1));
    }
    return element;
}

/// Where a tag ends: a '>' may stand in an attribute.
std::size_t end_of_tag(std::string_view text, std::size_t at) {
    char quote = '\0';
    for (; at < text.size(); ++at) {
        if (quote != '\0')
            quote = text[at] == quote ? '\0' : quote;
        else if (text[at] == '"' || text[at] == '\'')
            quote = text[at];
        else if (text[at] == '>')
            return at;
    }
    return std::string_view::npos;
}

/// Start tags in their order; nothing at what is no XML.
std::optional<std::vector<Element>> elements_of(std::string_view text) {
    std::vector<Element> elements;
    for (auto at = text.find('<'); at != std::string_view::npos; at = text.find('<', at)) {
        const auto rest = text.substr(at);
        const bool comment = rest.starts_with("<!--");
        const bool data = rest.starts_with("<![CDATA[");
        if (comment || data) {
            const std::string_view mark = comment ? "-->" : "]]>";
            const auto end = text.find(mark, at);
            if (end == std::string_view::npos)
                return std::nullopt;
            at = end + mark.size();
            continue;
        }
        const auto end = end_of_tag(text, at);
        if (end == std::string_view::npos)
            return std::nullopt;
        if (rest.size() > 1 && rest[1] != '/' && rest[1] != '?' && rest[1] != '!') {
            auto element = parse_tag(text.substr(at + 1, end - at - 1));
            if (!element)
                return std::nullopt;
            elements.push_back(std::move(*element));
        }
        at = end + 1;
    }
    return elements;
}

/// "byte", "byte * 2^30", "GigaBytes" of old descriptors.
std::optional<std::uint64_t> unit_bytes(std::string_view text) {
    static const std::map<std::string_view, unsigned> kOld{
        {"KiloBytes", 10}, {"MegaBytes", 20}, {"GigaBytes", 30}};
    if (text.empty() || text == "byte" || text == "Bytes")
        return 1;
    if (const auto known = kOld.find(text); known != kOld.end())
        return std::uint64_t{1} << known->second;
    const auto power = text.find("2^");
    unsigned bits = 0;
    if (!text.starts_with("byte") || power == std::string_view::npos)
        return std::nullopt;
    const auto digits = text.substr(power + 2);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), bits);
    if (error != std::errc{} || end != digits.data() + digits.size() || bits > 50)
        return std::nullopt;
    return std::uint64_t{1} << bits;
}

/// 0: it cannot be told (a property's name may stand there).
std::uint64_t capacity_of(const Element& disk) {
    const auto text = disk.get("capacity");
    const auto unit = unit_bytes(disk.get("capacityAllocationUnits"));
    std::uint64_t capacity = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), capacity);
    const bool number = error == std::errc{} && end == text.data() + text.size();
    return number && unit && capacity <= (std::uint64_t{1} << 62) / *unit ? capacity * *unit : 0;
}

} // namespace

bool is_ovf(std::string_view head) {
    for (auto at = head.find('<'); at != std::string_view::npos; at = head.find('<', at + 1)) {
        const auto name = head.substr(at + 1, head.find_first_of(" \t\r\n>", at) - at - 1);
        if (without_prefix(name) == "Envelope")
            return true;
        if (!name.starts_with('?') && !name.starts_with('!'))
            return false;
    }
    return false;
}

Result<std::vector<Disk>> parse_ovf(std::string_view text) {
    const auto elements = elements_of(text);
    if (!elements || elements->empty() || elements->front().name != "Envelope")
        return base::fail(Errc::Corrupt, "there is no OVF descriptor: its XML is damaged");
    std::map<std::string, Element> files;
    std::vector<Disk> disks;
    for (const auto& element : *elements) {
        if (element.name == "File")
            files[element.get("id")] = element;
        if (element.name != "Disk")
            continue;
        if (disks.size() == kMaxDisks)
            return base::fail(Errc::Corrupt,
                              fmt::format("the descriptor has more than {} disks", kMaxDisks));
        const auto reference = element.get("fileRef");
        const auto file = files.find(reference);
        if (!reference.empty() && file == files.end())
            return base::fail(Errc::Corrupt, fmt::format("the disk '{}' lies in the file '{}', "
                                                         "which is not among the references",
                                                         element.get("diskId"), reference));
        Disk disk;
        disk.id = element.get("diskId");
        disk.size_bytes = capacity_of(element);
        disk.format = element.get("format");
        disk.parent = element.get("parentRef");
        if (file != files.end()) {
            disk.file = file->second.get("href");
            disk.compression = file->second.get("compression");
        }
        disks.push_back(std::move(disk));
    }
    return disks;
}

} // namespace doppel::block::ova
