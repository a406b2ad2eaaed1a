// SPDX-License-Identifier: Apache-2.0
/// The parent of a differencing image: known by its UUIDs, found in the image's folder.
#include <dirent.h>

#include <algorithm>
#include <memory>

#include <fmt/core.h>

#include "block/clustered/parent.hpp"
#include "block/vdi/vdi_node.hpp"

namespace doppel::block::vdi {

namespace {

constexpr std::size_t kMaxCandidates = 4096; // files of a folder that are looked at

/// The names of regular .vdi files beside `image`, sorted.
std::vector<std::string> candidates(const std::string& image) {
    std::vector<std::string> names;
    const auto slash = image.rfind('/');
    const std::unique_ptr<DIR, int (*)(DIR*)> folder{
        ::opendir(slash == std::string::npos ? "." : image.substr(0, slash + 1).c_str()),
        &::closedir};
    if (!folder)
        return names;
    while (const auto* item = ::readdir(folder.get())) {
        const std::string name = item->d_name;
        if (item->d_type == DT_REG && name.ends_with(".vdi") && names.size() < kMaxCandidates)
            names.push_back(name);
    }
    std::ranges::sort(names);
    return names;
}

/// The header of a file that may be no VDI image, or in use: then nothing.
Task<Header> header_of(IoContext& context, std::string image, std::string written) {
    FileOptions options;
    options.sharing = Sharing::Forced; // only its UUIDs are read
    DOPPEL_CO_TRY(file, FileNode::open(context, beside(image, written), options));
    std::vector<std::byte> head(std::min<std::uint64_t>(kHeaderBytes, file->size()));
    DOPPEL_AWAIT_VOID(file->read(0, IoBuffer{head}));
    co_return parse_header(head, file->size());
}

bool is_null(const Uuid& uuid) { return uuid == Uuid{}; }

} // namespace

Task<void> VdiNode::find_parent() {
    std::string changed;
    for (const auto& candidate : candidates(name())) {
        auto task = header_of(context_, name(), candidate);
        const auto header = co_await task;
        if (!header || header->created != header_.parent_created)
            continue;
        if (header->modified == header_.parent_modified || is_null(header_.parent_modified)) {
            parent_ = candidate;
            co_return {};
        }
        changed = candidate;
    }
    if (!changed.empty())
        parent_ = changed;
    if (!options_.backing)
        co_return {};
    if (!changed.empty())
        co_return base::fail(
            Errc::Corrupt,
            fmt::format("'{}' was changed after '{}' was made from it", changed, name()),
            "If what it shows is still right, say so with rebase -u.");
    co_return base::fail(Errc::NotFound,
                         fmt::format("the parent of '{}' (a .vdi file with the UUID {}) is not in "
                                     "its folder",
                                     name(), guid_text(header_.parent_created)),
                         "VDI stores no file name: put it there.");
}

Task<void> VdiNode::change_backing(std::string file, std::string format) {
    if (!file.empty() && format != "vdi")
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("the parent of a VDI image is a VDI image, not {}",
                                         format.empty() ? "of unknown format" : format));
    DOPPEL_AWAIT_VOID(before_writing());
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    DOPPEL_AWAIT_VOID(commit()); // what the new chain would show otherwise is here now
    auto header = header_;
    header.parent_created = header.parent_modified = {};
    header.type = file.empty() ? Type::Dynamic : Type::Differencing;
    if (!file.empty()) {
        DOPPEL_AWAIT(parent, header_of(context_, name(), file));
        header.parent_created = parent.created;
        header.parent_modified = parent.modified;
    }
    header_ = header;
    parent_ = file;
    DOPPEL_AWAIT_VOID(write_header());
    DOPPEL_AWAIT_VOID(file_->flush());
    co_return {};
}

Task<void> VdiNode::accept_backing() { return change_backing(parent_, "vdi"); }

} // namespace doppel::block::vdi
