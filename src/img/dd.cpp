// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>

#include <fmt/core.h>

#include "block/aligned_memory.hpp"
#include "block/option_reader.hpp"
#include "img/images.hpp"
#include "img/signals.hpp"

namespace doppel::img {

namespace {

constexpr std::array kFlags{
    Flag{"f", "FORMAT", "format of the input [found out]"},
    Flag{"O", "FORMAT", "format of the output [raw]"},
    Flag{"U", "", "do not lock the input", "force-share"},
    Flag{"disk", "NAME", "of a package with several disks: which"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"image-opts", "", "if= is a list: driver=qcow2,file.filename=FILE"},
};

struct Operands {
    std::string input;
    std::string output;
    std::uint64_t block_bytes = 512;
    std::uint64_t count = ~std::uint64_t{0};
    std::uint64_t skip = 0;
};

Result<Operands> parse(const std::vector<std::string>& words) {
    Operands operands;
    for (const auto& word : words) {
        const auto equals = word.find('=');
        const auto name = word.substr(0, equals);
        const auto value = equals == std::string::npos ? std::string{} : word.substr(equals + 1);
        if (name == "if")
            operands.input = value;
        else if (name == "of")
            operands.output = value;
        else if (name == "bs")
            operands.block_bytes = DOPPEL_TRY(block::parse_size(value));
        else if (name == "count")
            operands.count = DOPPEL_TRY(block::parse_size(value));
        else if (name == "skip")
            operands.skip = DOPPEL_TRY(block::parse_size(value));
        else
            return base::fail(Errc::InvalidArgument, fmt::format("operand '{}' is unknown", word),
                              "Known are if=, of=, bs=, count= and skip=.");
    }
    if (operands.input.empty() || operands.output.empty())
        return base::fail(Errc::InvalidArgument, "if=FILE and of=FILE must be given");
    if (operands.block_bytes == 0 || operands.block_bytes > (1u << 30))
        return base::fail(Errc::InvalidArgument,
                          fmt::format("bs is {}, allowed 1 to 1G", operands.block_bytes));
    return operands;
}

block::Task<void> copy(block::Node& from, std::uint64_t begin, block::Node& to,
                       std::uint64_t length, std::uint64_t block_bytes) {
    block::AlignedMemory bytes{std::max<std::uint64_t>(block_bytes, 1u << 20)};
    for (std::uint64_t done = 0; done < length;) {
        DOPPEL_AWAIT(extent, from.status(begin + done,
                                         std::min<std::uint64_t>(bytes.size(), length - done)));
        const auto part = bytes.span().first(extent.length);
        if (extent.content != block::Content::Zero) {
            DOPPEL_AWAIT_VOID(from.read(begin + done, block::IoBuffer{part}));
            if (!block::all_zero(part))
                DOPPEL_AWAIT_VOID(to.write(done, block::IoBuffer{part}, block::Durability::Cached));
        }
        done += extent.length;
        if (*interrupted())
            co_return base::fail(Errc::Interrupted, "interrupted");
    }
    DOPPEL_AWAIT_VOID(to.flush());
    co_return {};
}

Result<int> run(Session& session) {
    const auto& arguments = session.arguments;
    const auto operands = DOPPEL_TRY(parse(arguments.positional()));
    const auto* format = DOPPEL_TRY(block::find_format(arguments.get("O", "raw")));
    auto input = DOPPEL_TRY(
        open_named(session, operands.input, open_flags(arguments, block::Access::ReadOnly)));
    const auto size = input.node->size();
    const auto begin =
        operands.skip > size / operands.block_bytes ? size : operands.skip * operands.block_bytes;
    const auto length = operands.count > (size - begin) / operands.block_bytes
                            ? size - begin
                            : operands.count * operands.block_bytes;
    auto file = DOPPEL_TRY(NewFile::prepare(session, operands.output));
    DOPPEL_TRY_VOID(create_image(session, *format, file, length, {}));
    block::ImageOptions options;
    options.format = std::string{format->name};
    options.part_suffix = file.part_suffix();
    options.access = block::Access::ReadWrite;
    auto output =
        DOPPEL_TRY(session.context.wait(block::open_image(session.context, file.path(), options)));
    Closing closing{session, *output.node};
    DOPPEL_TRY_VOID(
        session.context.wait(copy(*input.node, begin, *output.node, length, operands.block_bytes)));
    DOPPEL_TRY_VOID(closing.close());
    DOPPEL_TRY_VOID(file.publish());
    return 0;
}

constexpr Command kCommand{"dd",
                           "[-f FORMAT] [-O FORMAT] [bs=SIZE] [count=N] [skip=N] if=FILE of=FILE",
                           "copy a part of a disk into a new image",
                           {},
                           kFlags,
                           run};

} // namespace

const Command& dd_command() { return kCommand; }

} // namespace doppel::img
