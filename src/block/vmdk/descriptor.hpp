// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The text that describes a VMDK image: its identity, its parent, its extents (VMware's Virtual
/// Disk Format 5.0, "The Descriptor File"). Lines that are not known stay as they are. Any thread.
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace doppel::block::vmdk {

using base::Errc;
using base::Result;

constexpr std::uint32_t kNoParent = 0xffffffff; // parentCID
constexpr std::uint64_t kMaxDescriptorBytes = 1u << 20;
constexpr std::size_t kMaxExtents = 4096;

/// One line: RW 4192256 SPARSE "disk-s001.vmdk"
struct ExtentLine {
    std::string access = "RW"; // or RDONLY, NOACCESS
    std::uint64_t sectors = 0;
    std::string type; // FLAT, SPARSE, ZERO, VMFS …
    std::string file;
    std::uint64_t offset_sectors = 0; // FLAT: where in the file
};

struct Descriptor {
    std::string text;
    std::uint32_t cid = 0;
    std::uint32_t parent_cid = kNoParent;
    std::string create_type;
    std::string parent; // parentFileNameHint
    std::vector<ExtentLine> extents;
};

bool is_descriptor(std::span<const std::byte> head);
/// `bytes` ends at the first zero.
Result<Descriptor> parse_descriptor(std::span<const std::byte> bytes);
std::string extent_text(const ExtentLine& extent);

/// The text with another value for a key ("CID", "ddb.geometry.cylinders"), `value` as it stands in
/// the line; a key that is not there gets a line behind parentCID's.
std::string with_value(const std::string& text, std::string_view key, std::string_view value);
std::string without(const std::string& text, std::string_view key);
/// The text with other extents.
std::string with_extents(const std::string& text, const std::vector<ExtentLine>& extents);
std::string quoted(std::string_view value);
std::string cid_text(std::uint32_t cid);

} // namespace doppel::block::vmdk
