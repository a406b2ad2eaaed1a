// SPDX-License-Identifier: Apache-2.0
/// What of the file is in use, what is wrong with it, what can be given back.
#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/aligned_memory.hpp"
#include "block/all_or_nothing.hpp"
#include "block/vmdk/sparse_extent.hpp"

namespace doppel::block::vmdk {

using base::load_le;

namespace {
constexpr std::uint64_t kCopyBytes = 1u << 20;
constexpr std::size_t kMaxGaps = 1u << 20; // that are remembered
} // namespace

Task<std::vector<std::uint32_t>> SparseExtent::read_directory(std::uint64_t at) {
    std::vector<std::byte> bytes(header_.tables() * 4);
    DOPPEL_AWAIT_VOID(file_->read(at, IoBuffer{bytes}));
    std::vector<std::uint32_t> entries(header_.tables());
    for (std::size_t i = 0; i < entries.size(); ++i)
        entries[i] = load_le<std::uint32_t>(bytes.data() + i * 4);
    co_return entries;
}

/// Entries of a table; none where the file has a hole.
Task<std::vector<std::uint32_t>> SparseExtent::read_table(std::uint64_t table) {
    std::vector<std::uint32_t> entries;
    DOPPEL_AWAIT(below, file_->status(table, header_.table_bytes()));
    if (below.content == Content::Zero && below.length >= header_.table_bytes())
        co_return entries;
    std::vector<std::byte> bytes(header_.entries * 4ull);
    DOPPEL_AWAIT_VOID(file_->read(table, IoBuffer{bytes}));
    entries.resize(header_.entries);
    for (std::size_t i = 0; i < entries.size(); ++i)
        entries[i] = load_le<std::uint32_t>(bytes.data() + i * 4);
    co_return entries;
}

void SparseExtent::survey_grain(std::uint64_t index, std::uint32_t value, Survey& found,
                                CheckResult& result) const {
    ++result.allocated_clusters;
    const auto host = value * kSector;
    if (host >= file_->size())
        return result.found_corruption(
            fmt::format("grain {} lies past the end of the file", index));
    const auto step = header_.grain_bytes / kSector;
    result.fragmented_clusters += !found.grains.empty() && value != found.grains.back() + step;
    found.grains.push_back(value);
    found.end = std::max(found.end, host + header_.grain_bytes);
}

Task<void> SparseExtent::survey_table(std::uint64_t number, std::uint64_t table,
                                      std::uint64_t redundant, Survey& found, CheckResult& result) {
    const auto bytes = header_.table_bytes();
    const auto size = base::align_up(file_->size(), kSector);
    for (const auto at : {table, redundant})
        if (at != 0 && (at >= size || bytes > size - at)) {
            result.found_corruption(
                fmt::format("grain table {} lies past the end of the file", number));
            co_return {};
        }
    DOPPEL_AWAIT(entries, read_table(table));
    const auto first = number * header_.entries;
    const auto count = std::min<std::uint64_t>(header_.entries, header_.grains() - first);
    for (std::uint64_t i = 0; i < std::min<std::uint64_t>(count, entries.size()); ++i) {
        const auto value = entries[i];
        if (value == 0 || (value == kZeroGrain && has_zero_state()))
            continue;
        survey_grain(first + i, value, found, result);
        if (header_.compressed())
            DOPPEL_AWAIT_VOID(check_stream(first + i, value * kSector, result));
    }
    if (redundant == 0)
        co_return {};
    DOPPEL_AWAIT(others, read_table(redundant));
    entries.resize(header_.entries);
    others.resize(header_.entries);
    for (std::uint64_t i = 0; i < count; ++i)
        found.stale += entries[i] != others[i];
    co_return {};
}

/// The marker in front of a compressed grain says what it is.
Task<void> SparseExtent::check_stream(std::uint64_t index, std::uint64_t host,
                                      CheckResult& result) {
    ++result.compressed_clusters;
    std::vector<std::byte> grain(header_.grain_bytes);
    auto task = unpack(index, host, grain);
    const auto read = co_await task;
    if (!read && read.error().code != Errc::Corrupt)
        co_return read;
    if (!read)
        result.found_corruption(read.error().text);
    co_return {};
}

void SparseExtent::find_overlaps(const Survey& found, CheckResult& result) const {
    for (std::size_t i = 1; i < found.metadata.size(); ++i)
        if (found.metadata[i - 1].end > found.metadata[i].begin)
            result.found_corruption(
                fmt::format("two tables overlap at {:#x}", found.metadata[i].begin));
    if (header_.compressed())
        return;
    const auto& grains = found.grains;
    auto table = found.metadata.begin();
    for (std::size_t i = 0; i < grains.size(); ++i) {
        const auto begin = grains[i] * kSector;
        if (i > 0 && begin - grains[i - 1] * kSector < header_.grain_bytes)
            result.found_corruption(fmt::format("two grains overlap at {:#x}", begin));
        while (table != found.metadata.end() && table->end <= begin)
            ++table;
        if (table != found.metadata.end() && table->begin < begin + header_.grain_bytes)
            result.found_corruption(fmt::format("a grain lies on tables at {:#x}", table->begin));
    }
}

/// Walks directories and tables, which are as they are on disk.
Task<SparseExtent::Survey> SparseExtent::survey(CheckResult& result) {
    Survey found;
    const auto use = [&](std::uint64_t begin, std::uint64_t bytes) {
        if (begin == 0 || bytes == 0)
            return;
        found.metadata.push_back({begin, begin + bytes});
        found.end = std::max(found.end, begin + bytes);
    };
    found.metadata.push_back({0, kSector});
    found.end = kSector;
    use(header_.descriptor_at, header_.descriptor_bytes);
    use(header_.directory_at, header_.directory_bytes());
    DOPPEL_AWAIT(tables, read_directory(header_.directory_at));
    std::vector<std::uint32_t> redundant(tables.size());
    if (header_.redundant()) {
        use(header_.redundant_at, header_.directory_bytes());
        DOPPEL_AWAIT(others, read_directory(header_.redundant_at));
        redundant = std::move(others);
    }
    for (std::size_t i = 0; i < tables.size(); ++i) {
        use(tables[i] * kSector, header_.table_bytes());
        use(redundant[i] * kSector, header_.table_bytes());
    }
    std::ranges::sort(found.metadata, {}, &Range::begin);
    find_overlaps(found, result);
    if (result.corruptions != 0) // a table that is used many times would be walked many times
        co_return found;
    for (std::size_t i = 0; i < tables.size(); ++i)
        if (tables[i] != 0)
            DOPPEL_AWAIT_VOID(
                survey_table(i, tables[i] * kSector, redundant[i] * kSector, found, result));
    std::ranges::sort(found.grains);
    find_overlaps(found, result);
    co_return found;
}

/// Whole grains below the end that nobody uses.
std::vector<std::uint64_t> SparseExtent::free_grains(const Survey& found) const {
    std::vector<std::uint64_t> gaps;
    auto at = align_up(header_.overhead_bytes);
    auto table = found.metadata.begin();
    const auto fill_to = [&](std::uint64_t end) {
        for (; at + header_.grain_bytes <= end && gaps.size() < kMaxGaps; at += header_.grain_bytes)
            gaps.push_back(at);
    };
    const auto pass = [&](std::uint64_t begin, std::uint64_t end) {
        fill_to(begin);
        at = std::max(at, align_up(end));
    };
    for (const auto grain : found.grains) {
        for (; table != found.metadata.end() && table->begin < grain * kSector; ++table)
            pass(table->begin, table->end);
        pass(grain * kSector, grain * kSector + header_.grain_bytes);
    }
    for (; table != found.metadata.end(); ++table)
        pass(table->begin, table->end);
    return gaps;
}

SparseExtent::Shrinking SparseExtent::shrinking(const Survey& found) const {
    const auto gaps = free_grains(found);
    std::size_t kept = found.grains.size();
    std::size_t filled = 0;
    while (kept > 0 && filled < gaps.size() && gaps[filled] < found.grains[kept - 1] * kSector) {
        --kept;
        ++filled;
    }
    Shrinking plan{kept < found.grains.size() ? found.grains[kept] : ~std::uint32_t{0},
                   header_.overhead_bytes};
    for (const auto& range : found.metadata)
        plan.end = std::max(plan.end, range.end);
    if (kept > 0)
        plan.end = std::max(plan.end, found.grains[kept - 1] * kSector + header_.grain_bytes);
    if (filled > 0)
        plan.end = std::max(plan.end, gaps[filled - 1] + header_.grain_bytes);
    return plan;
}

Task<CheckResult> SparseExtent::check(Repair repair) {
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    if (!read_only())
        DOPPEL_AWAIT_VOID(commit());
    CheckResult result;
    result.total_clusters = clusters();
    DOPPEL_AWAIT(found, survey(result));
    result.image_end_offset = header_.compressed() ? file_->size() : found.end;
    if (header_.compressed() || result.corruptions != 0)
        co_return result;
    const auto end = align_up(shrinking(found).end);
    const bool longer = !file_->fixed_size() && file_->size() > end;
    const auto lost = longer ? (file_->size() - end) / header_.grain_bytes : 0;
    result.leaks = lost + found.stale;
    if (found.stale != 0)
        result.findings.push_back(fmt::format(
            "{} entries of the redundant grain tables say something else", found.stale));
    if (repair == Repair::None)
        co_return result;
    if (found.stale != 0)
        DOPPEL_AWAIT_VOID(copy_redundant());
    if (lost != 0)
        DOPPEL_AWAIT_VOID(compact());
    result.leaks_fixed = result.leaks;
    co_return result;
}

/// The tables that count are the others.
Task<void> SparseExtent::copy_redundant() {
    for (std::uint64_t number = 0; number < header_.tables(); ++number) {
        DOPPEL_AWAIT(table, table_at(header_.directory_at, number));
        DOPPEL_AWAIT(other, table_at(header_.redundant_at, number));
        if (table == 0 || other == 0)
            continue;
        DOPPEL_AWAIT(good, read_table(table));
        DOPPEL_AWAIT(stale, read_table(other));
        good.resize(header_.entries);
        stale.resize(header_.entries);
        for (std::size_t i = 0; i < good.size(); ++i)
            if (good[i] != stale[i])
                DOPPEL_AWAIT_VOID(set_word(other + i * 4, good[i]));
    }
    DOPPEL_AWAIT_VOID(commit());
    co_return {};
}

Task<void> SparseExtent::move_grain(std::uint64_t index, std::uint64_t from, std::uint64_t to) {
    AlignedMemory bytes{std::min(header_.grain_bytes, kCopyBytes)};
    for (std::uint64_t done = 0; done < header_.grain_bytes;) {
        const IoBuffer part{bytes.span().first(std::min(kCopyBytes, header_.grain_bytes - done))};
        DOPPEL_AWAIT_VOID(file_->read(from + done, part));
        DOPPEL_AWAIT_VOID(file_->write(to + done, part, Durability::Cached));
        done += part.size();
    }
    DOPPEL_AWAIT_VOID(link(index, {ClusterKind::Data, to, 1}));
    co_return {};
}

/// Fills the gaps with the last grains. Nobody uses a gap: a power cut leaves it one.
Task<void> SparseExtent::compact() {
    AllOrNothing operation{broken_};
    CheckResult result;
    DOPPEL_AWAIT(found, survey(result));
    const auto plan = shrinking(found);
    const auto gaps = free_grains(found);
    std::size_t next = 0;
    for (std::uint64_t number = 0; number < header_.tables(); ++number) {
        DOPPEL_AWAIT(table, table_at(header_.directory_at, number));
        if (table == 0)
            continue;
        DOPPEL_AWAIT(entries, read_table(table));
        for (std::size_t i = 0; i < entries.size(); ++i) {
            const auto index = number * header_.entries + i;
            if (entries[i] < plan.first || index >= header_.grains())
                continue;
            DOPPEL_AWAIT_VOID(move_grain(index, entries[i] * kSector, gaps[next]));
            ++next;
        }
    }
    DOPPEL_AWAIT_VOID(commit());
    file_end_ = 0;
    if (!file_->fixed_size() && file_->size() > align_up(plan.end))
        DOPPEL_AWAIT_VOID(file_->resize(align_up(plan.end)));
    DOPPEL_AWAIT(after, survey(result));
    use(after);
    fresh_from_ = file_->fixed_size() ? ~std::uint64_t{0} : file_->size();
    operation.done();
    co_return {};
}

} // namespace doppel::block::vmdk
