// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The manifest of an OVF package: a digest of each file (DMTF DSP0243 2.1, "OVF package"). Any
/// thread.
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace doppel::block::ova {

/// SHA256(disk.vmdk)= 1234…
struct DigestLine {
    std::string algorithm;
    std::string file;
    std::string digest; // lower case
};
/// Error Corrupt: a line is of another form.
base::Result<std::vector<DigestLine>> parse_manifest(std::string_view text);

} // namespace doppel::block::ova
