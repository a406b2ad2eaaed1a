// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What a disk takes of the host before it is written. Owner thread only.
#include <cstdint>
#include <string_view>

#include "block/task.hpp"

namespace doppel::block {

class Node;

enum class Preallocation : std::uint8_t {
    Off,
    Metadata, // the tables say where everything lies; the space itself is a hole
    Falloc,   // the space is reserved
    Full,     // and written, so that it is there whatever the file system
};

/// The value of a creation option: off, falloc or full. Error: another word, or space for an image
/// that does not have all its bytes from the beginning.
Result<Preallocation> parse_reservation(std::string_view word, std::string_view format,
                                        bool has_all_bytes);

/// Makes space of a range of a protocol node that holds nothing but zeroes. Error Unsupported: the
/// space cannot be reserved there.
Task<void> take_space(Node& file, std::uint64_t offset, std::uint64_t length, Preallocation how);

} // namespace doppel::block
