// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

namespace {

constexpr std::size_t kL2CacheBytes = 32u << 20;
constexpr std::uint64_t kHeadBytes = 4096;
constexpr std::uint64_t kLikelySnapshotBytes = 2048; // of the table, at most, for each

Task<Header> read_header(Node& file) {
    auto head = AlignedMemory::uninitialized(std::min(file.size(), kHeadBytes));
    DOPPEL_AWAIT_VOID(file.read(0, IoBuffer{head.span()}));
    if (head.size() >= 24 && !header_ends_within(head.span())) {
        const auto bits = base::load_be<std::uint32_t>(head.data() + 20);
        if (bits > 12 && bits <= kMaxClusterBits) {
            head = AlignedMemory::uninitialized(std::min(file.size(), std::uint64_t{1} << bits));
            DOPPEL_AWAIT_VOID(file.read(0, IoBuffer{head.span()}));
        }
    }
    co_return parse_header(head.span(), file.size());
}

Task<std::vector<std::uint64_t>> read_table(Node& file, std::uint64_t offset,
                                            std::uint64_t entries) {
    std::vector<std::uint64_t> table(entries);
    const std::span<std::uint64_t> words{table};
    DOPPEL_AWAIT_VOID(file.read(offset, IoBuffer{std::as_writable_bytes(words)}));
    for (auto& word : table)
        word = base::load_be<std::uint64_t>(&word);
    co_return table;
}

} // namespace

Qcow2Node::Qcow2Node(OpenRequest& request, Header header, std::vector<std::uint64_t> l1,
                     std::vector<std::uint64_t> reftable)
    : context_{*request.context}, options_{request.options}, file_{std::move(request.file)},
      data_{file_.get()}, header_{std::move(header)}, geometry_{header_}, l1_{std::move(l1)},
      guests_{context_}, metadata_{context_}, l2_{*file_, geometry_.cluster(), kL2CacheBytes},
      refcounts_{*file_, header_, std::move(reftable)},
      fresh_from_{base::align_up(file_->size(), geometry_.cluster())},
      can_be_fresh_{!file_->fixed_size()}, bitmaps_{*this} {}

Task<std::unique_ptr<Qcow2Node>> Qcow2Node::open(OpenRequest request) {
    const auto context = [&](Error error) {
        return std::unexpected(
            std::move(error).with_context(fmt::format("'{}'", request.file->name())));
    };
    auto header_task = read_header(*request.file);
    auto header = co_await header_task;
    if (!header)
        co_return context(std::move(header).error());
    DOPPEL_AWAIT(l1, read_table(*request.file, header->l1_offset, header->l1_entries));
    DOPPEL_AWAIT(reftable, read_table(*request.file, header->reftable_offset,
                                      header->reftable_clusters * header->cluster_bytes() / 8));
    std::unique_ptr<Qcow2Node> node{
        new Qcow2Node{request, std::move(*header), std::move(l1), std::move(reftable)}};
    DOPPEL_AWAIT_VOID(node->open_files(*request.opener));
    if (!node->read_only() && !node->options_.repair_later)
        DOPPEL_AWAIT_VOID(node->prepare_for_writing());
    co_return node;
}

/// How long the table is shows only while it is parsed: names may have 64 KiB each.
Task<void> Qcow2Node::load_snapshots() {
    if (header_.snapshot_count == 0)
        co_return {};
    const auto rest = file_->size() - std::min(file_->size(), header_.snapshots_offset);
    const auto most = std::min(kMaxSnapshotTableBytes, rest);
    std::vector<std::byte> bytes(std::min(most, header_.snapshot_count * kLikelySnapshotBytes));
    DOPPEL_AWAIT_VOID(file_->read(header_.snapshots_offset, IoBuffer{bytes}));
    auto table = parse_snapshots(bytes, header_.snapshot_count, header_.size_bytes);
    if (!table && bytes.size() < most) {
        bytes.resize(most);
        DOPPEL_AWAIT_VOID(file_->read(header_.snapshots_offset, IoBuffer{bytes}));
        table = parse_snapshots(bytes, header_.snapshot_count, header_.size_bytes);
    }
    DOPPEL_CO_TRY(snapshots, std::move(table));
    snapshots_ = std::move(snapshots);
    co_return {};
}

Task<void> Qcow2Node::open_files(ImageOpener& opener) {
    DOPPEL_AWAIT_VOID(load_snapshots());
    if (header_.external_data()) {
        if (header_.data_file.empty())
            co_return base::fail(Errc::Corrupt,
                                 fmt::format("'{}' has a data file but no name for it", name()));
        DOPPEL_CO_TRY(data,
                      opener.open_part(header_.data_file + options_.part_suffix, name(), options_));
        data_file_ = std::move(data);
        data_ = data_file_.get();
    }
    DOPPEL_AWAIT_VOID(open_encryption());
    DOPPEL_AWAIT_VOID(bitmaps_.load(*this));
    if (header_.backing_file.empty() || !options_.backing)
        co_return {};
    DOPPEL_AWAIT(backing, opener.open_backing(header_.backing_file, header_.backing_format, name(),
                                              options_));
    backing_ = std::move(backing);
    co_return {};
}

Task<void> Qcow2Node::prepare_for_writing() {
    if (header_.has(incompatible::kCorrupt))
        co_return base::fail(Errc::Corrupt,
                             fmt::format("'{}' is marked corrupt and cannot be written", name()),
                             "Repair it with check -r all, or open it read only.");
    if (header_.has(incompatible::kDirty)) {
        DOPPEL_AWAIT(result, check(Repair::All));
        if (result.corruptions > result.corruptions_fixed)
            co_return base::fail(
                Errc::Corrupt,
                fmt::format("'{}' was not closed and cannot be repaired by itself", name()),
                "Look at it with check.");
    }
    const auto maintained = header_.autoclear & (autoclear::kBitmaps | autoclear::kRawExternal);
    if (maintained != header_.autoclear) {
        header_.autoclear = maintained;
        DOPPEL_AWAIT_VOID(write_header());
    }
    DOPPEL_AWAIT_VOID(bitmaps_.mark_in_use(*this));
    co_return {};
}

std::optional<std::uint64_t> Qcow2Node::allocated_bytes() const {
    const auto own = file_->allocated_bytes();
    if (!data_file_ || !own)
        return own;
    const auto data = data_file_->allocated_bytes();
    return data ? std::optional{*own + *data} : own;
}

ImageInfo Qcow2Node::info() const {
    ImageInfo info;
    info.backing_file = header_.backing_file;
    info.backing_format = header_.backing_format;
    info.cluster_bytes = geometry_.cluster();
    info.dirty = header_.has(incompatible::kDirty);
    info.corrupt = header_.has(incompatible::kCorrupt);
    info.encrypted = luks_ != nullptr;
    info.facts.emplace_back("compat", std::string{header_.version >= 3 ? "1.1" : "0.10"});
    info.facts.emplace_back(
        "compression-type",
        std::string{header_.compression == Compression::Zstd ? "zstd" : "zlib"});
    if (header_.version >= 3)
        info.facts.emplace_back("lazy-refcounts",
                                (header_.compatible & compatible::kLazyRefcounts) != 0);
    info.facts.emplace_back("refcount-bits", std::uint64_t{1} << header_.refcount_order);
    if (header_.version >= 3)
        info.facts.emplace_back("corrupt", info.corrupt);
    if (luks_)
        info.facts.emplace_back("encrypt", luks_->info());
    if (const auto bitmaps = bitmaps_.list(); !bitmaps.empty())
        info.facts.emplace_back("bitmaps", bitmaps);
    if (header_.external_data()) {
        info.facts.emplace_back("data-file", header_.data_file);
        info.facts.emplace_back("data-file-raw",
                                (header_.autoclear & autoclear::kRawExternal) != 0);
    }
    if (header_.version >= 3)
        info.facts.emplace_back("extended-l2", geometry_.extended);
    return info;
}

} // namespace doppel::block::qcow2
