// SPDX-License-Identifier: Apache-2.0
/// Checking, resizing, another parent.
#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/all_or_nothing.hpp"
#include "block/clustered/parent.hpp"
#include "block/utf16.hpp"
#include "block/vpc/vpc_node.hpp"

namespace doppel::block::vpc {

namespace {
constexpr std::uint64_t kChunkEntries = 64u << 10; // of a table that is walked or written
}

/// Yields the end of all that is in use. Findings where two things have the same place.
Task<std::uint64_t> VpcNode::walk(CheckResult& result) {
    struct Used {
        std::uint64_t begin, end;
        std::string what;
    };
    std::vector<Used> used{
        {0, kFooterBytes, "the footer's copy"},
        {footer_.header_offset, footer_.header_offset + kHeaderBytes, "the header"},
        {header_.table_offset,
         header_.table_offset + base::align_up(header_.blocks * 4ull, kSector), "the block table"}};
    for (const auto& locator : header_.locators)
        if (locator.platform != 0 && locator.bytes != 0 && locator.offset < file_->size())
            used.push_back({locator.offset, std::min(file_->size(), locator.offset + locator.bytes),
                            "the parent's name"});
    result.total_clusters = clusters();
    std::vector<std::pair<std::uint64_t, std::uint64_t>> blocks; // where, which
    for (std::uint64_t index = 0; index < header_.blocks;) {
        const auto count = std::min<std::uint64_t>(kChunkEntries, header_.blocks - index);
        std::vector<std::byte> bytes(count * 4);
        DOPPEL_AWAIT_VOID(file_->read(header_.table_offset + index * 4, IoBuffer{bytes}));
        for (std::uint64_t i = 0; i < count; ++i, ++index) {
            const auto sector = base::load_be<std::uint32_t>(bytes.data() + i * 4);
            if (sector == kFree)
                continue;
            result.fragmented_clusters += !blocks.empty() && sector * kSector < blocks.back().first;
            blocks.emplace_back(sector * kSector, index);
        }
    }
    result.allocated_clusters = blocks.size();
    const auto length = header_.bitmap_bytes() + header_.block_bytes;
    std::ranges::sort(blocks);
    std::ranges::sort(used, {}, &Used::begin);
    std::uint64_t end = 0;
    for (const auto& item : used)
        end = std::max(end, item.end);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
        const auto [begin, index] = blocks[i];
        if (begin + length > file_->size())
            result.found_corruption(fmt::format("block {} lies past the end of the file", index));
        if (i > 0 && blocks[i - 1].first + length > begin)
            result.found_corruption(
                fmt::format("blocks {} and {} overlap", blocks[i - 1].second, index));
        for (const auto& item : used)
            if (item.begin < begin + length && begin < item.end)
                result.found_corruption(fmt::format("block {} lies on {}", index, item.what));
        end = std::max(end, begin + length);
    }
    result.image_end_offset = end + kFooterBytes;
    co_return base::align_up(end, kSector);
}

Task<CheckResult> VpcNode::check(Repair repair) {
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    if (!read_only())
        DOPPEL_AWAIT_VOID(commit());
    CheckResult result;
    DOPPEL_AWAIT(end, walk(result));
    if (!footer_lost_)
        co_return result;
    result.leaks = 1; // no data depend on it
    result.findings.emplace_back("the footer at the end is lost; its copy is used");
    if (repair == Repair::None || result.corruptions != 0)
        co_return result;
    end_ = end;
    DOPPEL_AWAIT_VOID(release_all());
    footer_lost_ = false;
    result.leaks_fixed = 1;
    co_return result;
}

/// The footers, first the one at the end. The copy at the beginning is good until then.
Task<void> VpcNode::replace_footer(Footer footer) {
    DOPPEL_AWAIT_VOID(file_->write(end_, IoBuffer::of(footer_.bytes), Durability::Durable));
    DOPPEL_AWAIT_VOID(file_->write(end_, IoBuffer::of(footer.bytes), Durability::Durable));
    DOPPEL_AWAIT_VOID(file_->write(0, IoBuffer::of(footer.bytes), Durability::Durable));
    footer_ = std::move(footer);
    size_bytes_ = footer_.size_bytes;
    file_end_ = std::max(file_end_, end_ + kFooterBytes);
    co_return {};
}

/// Header, and what it names, lie behind all else; the footers then name the header.
Task<void> VpcNode::replace_header(Header header, Type type, std::uint64_t size_bytes) {
    auto footer = footer_;
    const auto bytes = serialize_header(header);
    set_footer(footer, type, end_, size_bytes);
    DOPPEL_AWAIT_VOID(file_->write(end_, IoBuffer::of(bytes), Durability::Cached));
    end_ += kHeaderBytes;
    DOPPEL_AWAIT_VOID(replace_footer(std::move(footer)));
    header_ = std::move(header);
    table_.clear();
    if (fresh_from_ != ~std::uint64_t{0})
        fresh_from_ = std::max(fresh_from_, end_ + kFooterBytes);
    co_return {};
}

/// A table of so many entries at the end; those that the old one has not are free.
Task<void> VpcNode::write_table(Header& header, std::uint64_t blocks) {
    const auto at = end_;
    const auto entries = base::align_up(std::max<std::uint64_t>(blocks, 1), kSector / 4);
    for (std::uint64_t first = 0; first < entries; first += kChunkEntries) {
        const auto count = std::min(kChunkEntries, entries - first);
        std::vector<std::byte> bytes(count * 4, std::byte{0xff});
        const auto kept = std::min<std::uint64_t>(blocks, header_.blocks);
        if (first < kept)
            DOPPEL_AWAIT_VOID(
                file_->read(header_.table_offset + first * 4,
                            IoBuffer{bytes.data(), std::min(count, kept - first) * 4}));
        DOPPEL_AWAIT_VOID(file_->write(at + first * 4, IoBuffer{bytes}, Durability::Cached));
    }
    header.table_offset = at;
    header.blocks = static_cast<std::uint32_t>(blocks);
    end_ += entries * 4;
    co_return {};
}

/// What the last block holds behind the disk's end must read as zeroes once it belongs to it.
Task<void> VpcNode::zero_tail(std::uint64_t begin, std::uint64_t end) {
    if (begin >= end)
        co_return {};
    const auto index = begin / header_.block_bytes;
    DOPPEL_AWAIT(run, find(index, 1));
    if (run.kind == ClusterKind::Absent)
        co_return {};
    DOPPEL_AWAIT_VOID(file_->write_zeroes(run.host + within(begin), end - begin, Unmap::Keep,
                                          Durability::Cached));
    if (run.kind == ClusterKind::Partial)
        DOPPEL_AWAIT_VOID(
            mark_sectors(index, run.host, within(begin) / kSector, (end - begin) / kSector));
    co_return {};
}

/// A new table and header, and perhaps another size. The metadata lock is held.
Task<void> VpcNode::replace_table(std::uint64_t blocks, std::uint64_t size_bytes) {
    DOPPEL_AWAIT_VOID(commit()); // from here on the table on disk is the one in memory
    AllOrNothing operation{broken_};
    auto header = header_;
    DOPPEL_AWAIT_VOID(write_table(header, blocks));
    DOPPEL_AWAIT_VOID(replace_header(std::move(header), footer_.type, size_bytes));
    operation.done();
    co_return {};
}

/// A longer parent must not show through where the disk is new, at no time: the zeroes are there
/// before the footer has the size.
Task<void> VpcNode::grow(std::uint64_t size_bytes) {
    {
        DOPPEL_AWAIT(alone, lock_all(guests_, metadata_));
        DOPPEL_AWAIT_VOID(zero_tail(size_bytes_, align_up(size_bytes_)));
        DOPPEL_AWAIT_VOID(replace_table(align_up(size_bytes) / header_.block_bytes, size_bytes_));
    }
    DOPPEL_AWAIT_VOID(hide_parent(size_bytes));
    DOPPEL_AWAIT(alone, lock_all(guests_, metadata_));
    DOPPEL_AWAIT_VOID(commit());
    AllOrNothing operation{broken_};
    auto footer = footer_;
    set_footer(footer, footer.type, footer.header_offset, size_bytes);
    DOPPEL_AWAIT_VOID(replace_footer(std::move(footer)));
    operation.done();
    co_return {};
}

Task<void> VpcNode::resize(std::uint64_t size_bytes) {
    if (size_bytes % kSector != 0 || size_bytes > kMaxDiskBytes)
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("the size {} is not a multiple of 512 bytes up to "
                                         "2040 GiB",
                                         size_bytes));
    DOPPEL_AWAIT_VOID(before_writing());
    if (size_bytes > size()) {
        DOPPEL_AWAIT_VOID(grow(size_bytes));
        co_return {};
    }
    DOPPEL_AWAIT(alone, lock_all(guests_, metadata_));
    DOPPEL_AWAIT_VOID(zero_tail(size_bytes, align_up(size_bytes)));
    DOPPEL_AWAIT_VOID(replace_table(align_up(size_bytes) / header_.block_bytes, size_bytes));
    co_return {};
}

/// Without a parent a block counts as a whole: what is absent becomes zero.
Task<void> VpcNode::fill_partial() {
    const auto sectors = header_.block_bytes / kSector;
    for (std::uint64_t index = 0; index < clusters(); ++index) {
        DOPPEL_AWAIT(run, find(index, 1));
        for (std::uint64_t sector = 0; run.kind == ClusterKind::Partial && sector < sectors;) {
            DOPPEL_AWAIT(part, find_sectors(index, run.host, sector, sectors - sector));
            if (!part.present) {
                DOPPEL_AWAIT_VOID(file_->write_zeroes(run.host + sector * kSector,
                                                      part.count * kSector, Unmap::Keep,
                                                      Durability::Cached));
                DOPPEL_AWAIT_VOID(mark_sectors(index, run.host, sector, part.count));
            }
            sector += part.count;
        }
    }
    co_return {};
}

Task<void> VpcNode::change_backing(std::string file, std::string format) {
    if (!file.empty() && format != "vpc")
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("the parent of a VHD image is a VHD image, not {}",
                                         format.empty() ? "of unknown format" : format));
    DOPPEL_AWAIT_VOID(before_writing());
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    auto header = header_;
    header.parent = {};
    header.parent_name = file;
    header.locators.clear();
    if (file.empty()) {
        DOPPEL_AWAIT_VOID(fill_partial());
    } else {
        DOPPEL_AWAIT(uuid, parent_uuid(context_, name(), file));
        header.parent = uuid;
    }
    DOPPEL_AWAIT_VOID(commit()); // what the new chain would show otherwise is here now
    AllOrNothing operation{broken_};
    if (!file.empty()) {
        auto path = file;
        std::ranges::replace(path, '/', '\\');
        auto bytes = utf16_of((path.starts_with('\\') ? "" : ".\\") + path, ByteOrder::Little);
        const auto length = bytes.size();
        bytes.resize(base::align_up(length, kSector));
        header.locators.push_back({kRelativeLocator, bytes.size(), length, end_});
        DOPPEL_AWAIT_VOID(file_->write(end_, IoBuffer{bytes}, Durability::Cached));
        end_ += bytes.size();
    }
    DOPPEL_AWAIT_VOID(replace_header(
        std::move(header), file.empty() ? Type::Dynamic : Type::Differencing, footer_.size_bytes));
    parent_ = std::move(file);
    operation.done();
    co_return {};
}

} // namespace doppel::block::vpc
