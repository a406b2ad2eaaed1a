// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The commands of `doppel img`, a row each, and the way into them.
#include <span>
#include <string_view>

#include "block/io/io_context.hpp"
#include "img/arguments.hpp"
#include "img/objects.hpp"

namespace doppel::img {

constexpr int kFailed = 1; // qemu-img's code for every error that has none of its own

struct Session {
    block::IoContext& context;
    const Arguments& arguments;
    const Objects& objects;
    std::string_view name; // of the command as the user calls it: "doppel img compare"
};

struct Command {
    std::string_view name;
    std::string_view usage; // what follows the name
    std::string_view summary;
    std::string_view details; // more for --help; may be empty
    std::span<const Flag> flags;
    /// The exit code, or an error, which is printed.
    Result<int> (*run)(Session& session);
    int error_code = kFailed;
};

const Command& create_command();
const Command& info_command();
const Command& check_command();
const Command& convert_command();
const Command& compare_command();
const Command& map_command();
const Command& measure_command();
const Command& resize_command();
const Command& rebase_command();
const Command& commit_command();
const Command& snapshot_command();
const Command& amend_command();
const Command& bitmap_command();
const Command& dd_command();
const Command& bench_command();
const Command& serve_command();

/// Prints an error; yields `code`, or interrupted_code() where that was the reason. A file that is
/// not complete is called what it will be called.
int complain(std::string_view name, const Error& error, int code);

/// `program`: how the user calls us, for messages ("doppel img", "doppel-img"); `words`: what
/// follows. The exit code.
int run(std::string_view program, std::span<const char* const> words);

} // namespace doppel::img
