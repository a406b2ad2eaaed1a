// SPDX-License-Identifier: Apache-2.0
#include "img/command.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

#include <fmt/core.h>

#include "block/image/formats.hpp"
#include "img/background.hpp"
#include "img/images.hpp"
#include "img/signals.hpp"

namespace doppel::img {

namespace {

std::array<const Command*, 16> commands() {
    return {&create_command(),  &info_command(),   &check_command(),    &convert_command(),
            &compare_command(), &map_command(),    &measure_command(),  &resize_command(),
            &rebase_command(),  &commit_command(), &snapshot_command(), &amend_command(),
            &bitmap_command(),  &dd_command(),     &bench_command(),    &serve_command()};
}

void print_overview(std::string_view program, std::FILE* out) {
    fmt::print(out,
               "Disk images: look at, make, convert and repair them.\n\n"
               "Usage: {} COMMAND [OPTIONS] …\n\nCommands:\n",
               program);
    for (const auto* command : commands())
        fmt::print(out, "  {:<10} {}\n", command->name, command->summary);
    fmt::print(out, "\nFormats:\n");
    for (const auto* format : block::formats())
        fmt::print(out, "  {:<10} {}{}\n", format->name, format->description,
                   format->create == nullptr ? " (read only)" : "");
    fmt::print(out, "\nSizes take k, M, G, T, P or E. '{} COMMAND --help' says more.\n", program);
}

void print_help(std::string_view program, const Command& command) {
    fmt::print("Usage: {} {} {}\n\n{}.\n", program, command.name, command.usage, command.summary);
    if (!command.details.empty())
        fmt::print("\n{}\n", command.details);
    fmt::print("\nOptions:\n");
    for (const auto& flag : command.flags) {
        auto text = flag.name.size() == 1 ? fmt::format("-{}", flag.name)
                                          : fmt::format("    --{}", flag.name);
        if (!flag.long_name.empty())
            text += fmt::format(", --{}", flag.long_name);
        if (!flag.value.empty())
            text += fmt::format(" {}", flag.value);
        fmt::print("  {:<26} {}\n", text, flag.help);
    }
    if (command.name != "create")
        return;
    const auto list = [](std::string_view what, std::span<const block::OptionSpec> options) {
        if (options.empty())
            return;
        fmt::print("\nOptions of {} (-o NAME=VALUE):\n", what);
        for (const auto& option : options)
            fmt::print("  {:<18} {}{}\n", option.name, option.help,
                       option.standard.empty() ? "" : fmt::format(" [{}]", option.standard));
    };
    for (const auto* format : block::formats())
        list(format->name, format->options);
    list("any new file", file_options());
}

int run_command(std::string_view program, const Command& command,
                std::span<const char* const> words) {
    const auto wants_help = [](std::string_view word) { return word == "--help" || word == "-h"; };
    if (std::ranges::any_of(words, wants_help)) {
        print_help(program, command);
        return 0;
    }
    const auto name = fmt::format("{} {}", program, command.name);
    const auto arguments = Arguments::parse(words, command.flags);
    if (!arguments) {
        fmt::print(stderr, "{}: {}; see '{} --help'\n", name, arguments.error().message(), name);
        return kFailed;
    }
    const auto objects = Objects::parse(*arguments);
    if (!objects)
        return complain(name, objects.error(), command.error_code);
    if (arguments->has("fork")) {
        const auto parent = go_to_background();
        if (!parent)
            return complain(name, parent.error(), command.error_code);
        if (const auto& status = *parent; status.has_value())
            return *status;
    }
    end_cleanly_on_signals(name);
    const auto loop = base::EventLoop::create();
    if (!loop)
        return complain(name, loop.error(), command.error_code);
    const auto context = block::IoContext::create(**loop);
    if (!context)
        return complain(name, context.error(), command.error_code);
    Session session{**context, *arguments, *objects, name};
    const auto code = command.run(session);
    return code ? *code : complain(name, code.error(), command.error_code);
}

} // namespace

int complain(std::string_view name, const Error& error, int code) {
    auto text = error.message();
    const auto temporary = part_suffix();
    for (auto at = text.find(temporary); at != std::string::npos; at = text.find(temporary))
        text.erase(at, temporary.size());
    fmt::print(stderr, "{}: {}\n", name, text);
    return error.code == Errc::Interrupted ? interrupted_code() : code;
}

int run(std::string_view program, std::span<const char* const> words) {
    if (words.empty()) {
        print_overview(program, stderr);
        return kFailed;
    }
    const std::string_view first = words[0];
    if (first == "--help" || first == "-h" || first == "help") {
        print_overview(program, stdout);
        return 0;
    }
    if (first == "--version" || first == "-V") {
        fmt::print("doppel-img version {}\n", DOPPEL_VERSION);
        return 0;
    }
    for (const auto* command : commands())
        if (command->name == first)
            return run_command(program, *command, words.subspan(1));
    fmt::print(stderr, "{}: there is no command '{}'; see '{} --help'\n", program, first, program);
    return kFailed;
}

} // namespace doppel::img
