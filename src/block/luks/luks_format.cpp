// SPDX-License-Identifier: Apache-2.0
/// LUKS as a row of the format table.
#include <algorithm>
#include <array>
#include <vector>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/luks/luks_node.hpp"

namespace doppel::block::luks {

namespace {

const std::vector<OptionSpec>& all_options() {
    static const auto kAll = [] {
        const auto some = crypto::luks_create_options();
        std::vector<OptionSpec> all{some.begin(), some.end()};
        all.push_back({"preallocation", OptionKind::Text, "off",
                       "off (what nobody wrote reads as noise), falloc or full (zeroes written)"});
        return all;
    }();
    return kAll;
}

constexpr std::array kOpenOptions{
    OptionSpec{"key-secret", OptionKind::Text, "", "id of the secret with the passphrase"},
};

int probe(std::span<const std::byte> head, std::uint64_t) {
    return crypto::is_luks(head) ? 100 : 0;
}

Task<std::unique_ptr<ImageNode>> open(OpenRequest request) {
    DOPPEL_AWAIT(node, LuksNode::open(std::move(request)));
    co_return std::unique_ptr<ImageNode>{std::move(node)};
}

Task<void> preallocate(CreateRequest& request, const std::string& mode, std::uint64_t begin,
                       std::unique_ptr<crypto::SectorCipher> cipher) {
    if (mode == "falloc" && request.size_bytes > 0) {
        if (request.file->driver() != "file")
            co_return base::fail(Errc::Unsupported, "preallocation=falloc wants a regular file");
        auto& file = static_cast<FileNode&>(*request.file);
        DOPPEL_AWAIT_VOID(file.allocate(begin, request.size_bytes));
    }
    if (mode != "full")
        co_return {};
    crypto::CipherNode data{*request.context, *request.file, begin, std::move(cipher)};
    DOPPEL_AWAIT_VOID(data.write_zeroes(0, request.size_bytes, Unmap::Keep, Durability::Cached));
    co_return {};
}

Task<void> create(CreateRequest request) {
    const OptionReader options{all_options(), request.options};
    DOPPEL_CO_TRY_VOID(options.check_names("luks"));
    DOPPEL_CO_TRY(wanted, crypto::read_luks_options(options, ""));
    const auto mode = options.text("preallocation");
    if (mode != "off" && mode != "falloc" && mode != "full")
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("preallocation '{}' is unknown for luks", mode),
                             "Use off, falloc or full.");
    DOPPEL_CO_TRY(passphrase, crypto::find_secret(options, "key-secret", request.secrets));
    request.size_bytes = base::align_up(request.size_bytes, crypto::kSectorBytes);
    DOPPEL_AWAIT(volume, crypto::LuksVolume::create(*request.context, *request.file, 0,
                                                    std::move(wanted), std::move(passphrase)));
    const auto begin = volume->header().payload_bytes();
    DOPPEL_AWAIT_VOID(request.file->resize(begin + request.size_bytes));
    DOPPEL_CO_TRY(cipher, volume->cipher());
    DOPPEL_AWAIT_VOID(preallocate(request, mode, begin, std::move(cipher)));
    DOPPEL_AWAIT_VOID(request.file->flush());
    co_return {};
}

Result<SpaceNeed> measure(const DiskUse& use, const OptionValues& values) {
    const OptionReader options{all_options(), values};
    DOPPEL_TRY_VOID(options.check_names("luks"));
    const auto wanted = DOPPEL_TRY(crypto::read_luks_options(options, ""));
    const auto header = DOPPEL_TRY(crypto::LuksVolume::plan(wanted));
    const auto bytes =
        header.payload_bytes() + base::align_up(use.size_bytes, crypto::kSectorBytes);
    return SpaceNeed{bytes, bytes};
}

} // namespace

const Format& format() {
    static const Format kFormat{
        "luks",  "an encrypted disk, as cryptsetup makes it (LUKS version 1)",
        probe,   open,
        create,  all_options(),
        measure, kOpenOptions};
    return kFormat;
}

} // namespace doppel::block::luks
