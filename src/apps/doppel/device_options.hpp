// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The options of `doppel run` that describe a device in one word: "FILE,format=raw,readonly=on";
/// and the secrets for them.
#include <optional>
#include <string>

#include "base/result.hpp"
#include "description/machine.hpp"

namespace doppel::cli {

/// Errors: InvalidArgument naming the key or value. Does not look at the file.
base::Result<description::Disk> parse_disk(const std::string& text);
/// "secret,id=NAME,file=FILE,format=base64". Errors: InvalidArgument, and what the file says.
base::Result<description::Secret> parse_secret(const std::string& text);
/// That the disk can be opened: what is missing, a directory or not permitted is said before
/// anything starts.
base::Result<void> check_disk(const description::Disk& disk);
/// "user,forward=tcp:2222:22"; nothing for "none". Errors: InvalidArgument naming the key or value.
base::Result<std::optional<description::Net>> parse_net(const std::string& text);

/// "no-groups,no-flags,chaos=7,jitdump=DIR". Errors: InvalidArgument naming the part.
base::Result<description::Translation> parse_translation(const std::string& text);

} // namespace doppel::cli
