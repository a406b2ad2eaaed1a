// SPDX-License-Identifier: Apache-2.0
#pragma once
/// How an image is named on the command line. Any thread.
#include <string>
#include <vector>

#include "block/image_node.hpp"
#include "img/arguments.hpp"

namespace doppel::img {

/// Something that stands in front of an image: driver=throttle,….
struct FilterName {
    std::string driver;
    block::OptionValues options;
};

/// A path or URL; with --image-opts "driver=qcow2,file.filename=PATH,…"; or "json:{…}" with the
/// same members.
struct ImageName {
    std::string path;
    std::string format;
    block::OptionValues options;     // the format's, see block::ImageOptions::driver
    std::vector<FilterName> filters; // the outermost first

    /// The image behind this one, named by it as `written`: with the options that are for it.
    ImageName behind(std::string written, std::string format_of) const;
};
Result<ImageName> parse_image_name(const std::string& text, bool as_options,
                                   const std::string& format);

/// "-o a=b,c=d", several times; ",," stands for a comma in a value.
Result<block::OptionValues> parse_options(const std::vector<std::string>& texts);

/// {"a": {"b": 1}, "c": ["x"]} as a.b=1, c.0=x; true and false as on and off.
Result<block::OptionValues> flatten_json(std::string_view text);

} // namespace doppel::img
