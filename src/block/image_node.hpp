// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A format node: a Node plus what a tool asks of an image. Owner thread only.
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "block/node.hpp"

namespace doppel::block {

/// A format's own facts in the order of printing: "compat" "1.1", "lazy refcounts" false …
/// The names are those of qemu-img's JSON (format-specific.data), with hyphens.
using FactValue = std::variant<bool, std::uint64_t, std::string>;
using Facts = std::vector<std::pair<std::string, FactValue>>;

struct ImageInfo {
    std::string backing_file;   // as written in the image; empty: none
    std::string backing_format; // empty: not recorded
    std::uint64_t cluster_bytes = 0;
    bool dirty = false;   // was not closed cleanly
    bool corrupt = false; // marked as such
    bool encrypted = false;
    bool compressed = false; // holds only compressed data by nature
    Facts facts;
};

class ImageNode : public Node {
public:
    virtual ImageInfo info() const { return {}; }
};

} // namespace doppel::block
