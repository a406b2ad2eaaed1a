// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What an OVF descriptor says of disks (DMTF DSP0243 1.1 and 2.1: References, DiskSection). Of XML
/// it reads elements and their attributes, whatever their prefix; entities are the five of XML and
/// numbers. Any thread.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace doppel::block::ova {

constexpr std::uint64_t kMaxOvfBytes = 4u << 20;

struct Disk {
    std::string id;               // diskId
    std::string file;             // href; empty: a new disk without content
    std::uint64_t size_bytes = 0; // 0: not said
    std::string format;           // a URI
    std::string compression;      // of the file; empty: none
    std::string parent;           // the diskId of the disk behind it
};

bool is_ovf(std::string_view head);
/// Error Corrupt: it is no OVF, or no XML.
base::Result<std::vector<Disk>> parse_ovf(std::string_view text);

} // namespace doppel::block::ova
