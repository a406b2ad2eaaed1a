// SPDX-License-Identifier: Apache-2.0
#include "block/ova/tar.hpp"

#include <algorithm>
#include <charconv>
#include <optional>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::block::ova {

namespace {

// The ustar header.
constexpr std::size_t kSizeAt = 124, kSizeBytes = 12, kSumAt = 148, kSumBytes = 8, kTypeAt = 156,
                      kMagicAt = 257, kNameBytes = 100, kPrefixAt = 345, kPrefixBytes = 155;
constexpr std::size_t kMaxMembers = 4096;
constexpr std::uint64_t kMaxNameBytes = 64u << 10; // of long names, and of pax headers

std::string_view field(std::span<const std::byte> header, std::size_t at, std::size_t size) {
    const std::string_view text{reinterpret_cast<const char*>(header.data()) + at, size};
    return text.substr(0, text.find('\0'));
}

std::optional<std::uint64_t> octal(std::string_view text) {
    text = text.substr(std::min(text.find_first_not_of(' '), text.size()));
    text = text.substr(0, text.find(' '));
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 8);
    if (error != std::errc{} || end != text.data() + text.size())
        return std::nullopt;
    return value;
}

/// Octal digits, or bytes behind a first one of 0x80.
std::optional<std::uint64_t> size_of(std::span<const std::byte> header) {
    if (header[kSizeAt] != std::byte{0x80})
        return octal(field(header, kSizeAt, kSizeBytes));
    return base::load_be<std::uint64_t>(header.data() + kSizeAt + kSizeBytes - 8);
}

/// The sum of all bytes, those of the sum itself as spaces.
bool sum_is_right(std::span<const std::byte> header) {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < kTarBlock; ++i)
        sum += i >= kSumAt && i < kSumAt + kSumBytes ? ' ' : static_cast<unsigned>(header[i]);
    return octal(field(header, kSumAt, kSumBytes)) == sum;
}

std::string name_of(std::span<const std::byte> header) {
    std::string name{field(header, 0, kNameBytes)};
    if (const auto prefix = field(header, kPrefixAt, kPrefixBytes); !prefix.empty())
        name = std::string{prefix} + '/' + name;
    return name;
}

/// "30 path=disk.vmdk\n", several times.
struct PaxValues {
    std::string path;
    std::optional<std::uint64_t> size_bytes;
};
PaxValues parse_pax(std::string_view text) {
    PaxValues values;
    while (!text.empty()) {
        std::size_t length = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
        const auto digits = static_cast<std::size_t>(end - text.data());
        if (error != std::errc{} || length <= digits + 1 || length > text.size())
            break;
        const auto record = text.substr(digits + 1, length - digits - 2);
        const auto value = record.substr(std::min(record.find('=') + 1, record.size()));
        std::uint64_t size = 0;
        if (record.starts_with("path="))
            values.path = value;
        else if (record.starts_with("size=") &&
                 std::from_chars(value.data(), value.data() + value.size(), size).ec == std::errc{})
            values.size_bytes = size;
        text.remove_prefix(length);
    }
    return values;
}

Task<std::string> read_text(Node& archive, std::uint64_t begin, std::uint64_t size_bytes) {
    std::string text(std::min(size_bytes, kMaxNameBytes), '\0');
    const IoBuffer into{text.data(), text.size()};
    DOPPEL_AWAIT_VOID(archive.read(begin, into));
    co_return text;
}

} // namespace

bool is_tar(std::span<const std::byte> head) {
    return head.size() >= kTarBlock && field(head, kMagicAt, 5) == "ustar" &&
           sum_is_right(head.first(kTarBlock));
}

std::string first_name(std::span<const std::byte> head) {
    return is_tar(head) ? name_of(head) : std::string{};
}

Task<std::vector<Member>> list_members(Node& archive) {
    std::vector<Member> members;
    PaxValues given; // for the next file
    std::vector<std::byte> header(kTarBlock);
    for (std::uint64_t at = 0; at + kTarBlock <= archive.size();) {
        DOPPEL_AWAIT_VOID(archive.read(at, IoBuffer{header}));
        if (std::ranges::all_of(header, [](std::byte byte) { return byte == std::byte{0}; }))
            break;
        const auto found = is_tar(header) ? size_of(header) : std::nullopt;
        const auto size = found ? given.size_bytes.value_or(*found) : 0;
        const auto begin = at + kTarBlock;
        if (!found || size > archive.size() - begin || members.size() >= kMaxMembers)
            co_return base::fail(Errc::Corrupt,
                                 fmt::format("'{}': the archive is damaged at {}, or cut short",
                                             archive.name(), at));
        const auto type = static_cast<char>(header[kTypeAt]);
        at = begin + base::align_up(size, kTarBlock);
        if (type == 'L' || type == 'x') {
            DOPPEL_AWAIT(text, read_text(archive, begin, size));
            if (type == 'x')
                given = parse_pax(text);
            else
                given.path = text.c_str();
            continue;
        }
        if (type == '0' || type == '\0')
            members.push_back({given.path.empty() ? name_of(header) : given.path, begin, size});
        given = {};
    }
    co_return members;
}

Task<void> MemberNode::read(std::uint64_t offset, IoBuffer into) {
    const auto known = std::min<std::uint64_t>(
        into.size(), member_.size_bytes - std::min(member_.size_bytes, offset));
    into.slice(known, into.size() - known).fill(std::byte{0});
    if (known > 0)
        DOPPEL_AWAIT_VOID(archive_.read(member_.begin + offset, into.slice(0, known)));
    co_return {};
}

Task<Extent> MemberNode::status(std::uint64_t offset, std::uint64_t length) {
    DOPPEL_AWAIT(extent, archive_.status(member_.begin + offset, length));
    extent.host = member_.begin + offset;
    extent.place = &archive_;
    co_return extent;
}

Task<void> MemberNode::refuse() const {
    return ready<void>(base::fail(Errc::PermissionDenied,
                                  fmt::format("'{}' is a file in an archive: it can be read, not "
                                              "written",
                                              name())));
}

} // namespace doppel::block::ova
