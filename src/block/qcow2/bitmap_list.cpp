// SPDX-License-Identifier: Apache-2.0
#include "block/qcow2/bitmap_list.hpp"

#include <algorithm>
#include <bit>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

namespace {

constexpr std::size_t kFixedBytes = 24;
constexpr std::uint32_t kInUse = 1;
constexpr std::uint32_t kAuto = 2;
constexpr std::uint32_t kExtraCompatible = 4;
constexpr std::uint8_t kDirtyTracking = 1;
constexpr std::uint64_t kMaxDirectoryBytes = 64u << 20;
constexpr std::size_t kMaxBitmaps = 65535;
constexpr std::uint64_t kMaxBitmapBytes = 128u << 20;
constexpr std::uint64_t kMinGranularity = 512;
constexpr std::uint64_t kMaxGranularity = std::uint64_t{1} << 31;

Result<Bitmap> parse_bitmap(std::span<const std::byte> bytes, std::size_t& used) {
    if (bytes.size() < kFixedBytes)
        return base::fail(Errc::Corrupt, "the bitmap directory is cut off");
    Bitmap bitmap;
    bitmap.table_offset = base::load_be<std::uint64_t>(bytes.data());
    bitmap.table_entries = base::load_be<std::uint32_t>(bytes.data() + 8);
    const auto flags = base::load_be<std::uint32_t>(bytes.data() + 12);
    const auto type = std::to_integer<std::uint8_t>(bytes[16]);
    bitmap.granularity_bits = std::to_integer<unsigned>(bytes[17]);
    const std::size_t name_bytes = base::load_be<std::uint16_t>(bytes.data() + 18);
    const std::size_t extra_bytes = base::load_be<std::uint32_t>(bytes.data() + 20);
    if (type != kDirtyTracking || bitmap.granularity_bits < 9 || bitmap.granularity_bits > 31 ||
        extra_bytes > bytes.size() || name_bytes + extra_bytes > bytes.size() - kFixedBytes)
        return base::fail(Errc::Corrupt, "a bitmap's directory entry is invalid");
    bitmap.recording = (flags & kAuto) != 0;
    bitmap.inconsistent = (flags & kInUse) != 0;
    const auto extra = bytes.subspan(kFixedBytes, extra_bytes);
    bitmap.extra.assign(extra.begin(), extra.end());
    const auto name = bytes.subspan(kFixedBytes + extra_bytes, name_bytes);
    bitmap.name.assign(reinterpret_cast<const char*>(name.data()), name.size());
    used = std::min<std::size_t>(base::align_up(kFixedBytes + extra_bytes + name_bytes, 8),
                                 bytes.size());
    return bitmap;
}

} // namespace

std::size_t BitmapList::words_for(unsigned granularity_bits) const {
    const auto granules =
        (node_->size() + (std::uint64_t{1} << granularity_bits) - 1) >> granularity_bits;
    return (granules + 63) / 64;
}

Task<void> BitmapList::load(Qcow2Node& node) {
    const auto& extension = node.header_.bitmaps;
    if (extension.count == 0)
        co_return {};
    if (extension.directory_bytes > kMaxDirectoryBytes || extension.count > kMaxBitmaps ||
        extension.directory_offset + extension.directory_bytes >
            node.file_->size() + node.geometry_.cluster())
        co_return base::fail(Errc::Corrupt,
                             fmt::format("'{}': the bitmap directory is too large", node.name()));
    std::vector<std::byte> bytes(extension.directory_bytes);
    DOPPEL_AWAIT_VOID(node.file_->read(extension.directory_offset, IoBuffer{bytes}));
    // An image that was written by a program without bitmaps has lost them.
    const bool valid = (node.header_.autoclear & autoclear::kBitmaps) != 0;
    stored_.push_back({extension.directory_offset, extension.directory_bytes});
    std::span<const std::byte> rest{bytes};
    for (std::uint32_t i = 0; i < extension.count; ++i) {
        std::size_t used = 0;
        DOPPEL_CO_TRY(bitmap, parse_bitmap(rest, used));
        rest = rest.subspan(used);
        bitmap.inconsistent = bitmap.inconsistent || !valid;
        DOPPEL_AWAIT_VOID(load_one(node, bitmap));
        bitmaps_.push_back(std::move(bitmap));
    }
    co_return {};
}

Task<void> BitmapList::load_one(Qcow2Node& node, Bitmap& bitmap) {
    const auto words = words_for(bitmap.granularity_bits);
    const auto clusters = node.geometry_.clusters_for(words * 8);
    const bool possible = words * 8 <= kMaxBitmapBytes && bitmap.table_entries <= clusters &&
                          node.geometry_.within(bitmap.table_offset) == 0 &&
                          bitmap.table_offset <= node.file_->size();
    if (!possible && !bitmap.inconsistent)
        co_return base::fail(Errc::Corrupt, fmt::format("'{}': the table of bitmap '{}' is invalid",
                                                        node.name(), bitmap.name));
    if (!possible) {
        bitmap.table_entries = 0;
        co_return {};
    }
    std::vector<std::byte> table(bitmap.table_entries * std::size_t{8});
    DOPPEL_AWAIT_VOID(node.file_->read(bitmap.table_offset, IoBuffer{table}));
    stored_.push_back({bitmap.table_offset, table.size()});
    std::vector<std::byte> bits(clusters << node.geometry_.cluster_bits);
    for (std::size_t i = 0; i < bitmap.table_entries; ++i) {
        const auto entry = base::load_be<std::uint64_t>(table.data() + i * 8);
        const auto part =
            std::span{bits}.subspan(i << node.geometry_.cluster_bits, node.geometry_.cluster());
        const auto offset = entry & kOffsetMask;
        if (offset == 0) {
            std::ranges::fill(part, (entry & 1) != 0 ? std::byte{0xff} : std::byte{0});
            continue;
        }
        stored_.push_back({offset, node.geometry_.cluster()});
        if (!bitmap.inconsistent)
            DOPPEL_AWAIT_VOID(node.file_->read(offset, IoBuffer{part}));
    }
    bitmap.words.resize(words);
    for (std::size_t i = 0; i < words; ++i)
        bitmap.words[i] = base::load_le<std::uint64_t>(bits.data() + i * 8);
    co_return {};
}

std::vector<std::byte> BitmapList::directory(bool in_use) const {
    std::vector<std::byte> out;
    for (const auto& bitmap : bitmaps_) {
        const auto at = out.size();
        out.resize(at + kFixedBytes);
        auto* entry = out.data() + at;
        base::store_be(entry, bitmap.table_offset);
        base::store_be(entry + 8, bitmap.table_entries);
        std::uint32_t flags = bitmap.recording ? kAuto : 0;
        flags |= in_use || bitmap.inconsistent ? kInUse : 0;
        flags |= bitmap.extra.empty() ? 0 : kExtraCompatible;
        base::store_be(entry + 12, flags);
        entry[16] = std::byte{kDirtyTracking};
        entry[17] = static_cast<std::byte>(bitmap.granularity_bits);
        base::store_be(entry + 18, static_cast<std::uint16_t>(bitmap.name.size()));
        base::store_be(entry + 20, static_cast<std::uint32_t>(bitmap.extra.size()));
        out.insert(out.end(), bitmap.extra.begin(), bitmap.extra.end());
        const auto name = std::as_bytes(std::span{bitmap.name.data(), bitmap.name.size()});
        out.insert(out.end(), name.begin(), name.end());
        out.resize(base::align_up(out.size(), 8));
    }
    return out;
}

Task<void> BitmapList::mark_in_use(Qcow2Node& node) {
    if (bitmaps_.empty())
        co_return {};
    const auto bytes = directory(true);
    if (bytes.size() != node.header_.bitmaps.directory_bytes)
        co_return base::fail(Errc::Corrupt, "the bitmap directory has entries of unknown kind");
    const auto from = IoBuffer::of(bytes);
    DOPPEL_AWAIT_VOID(
        node.file_->write(node.header_.bitmaps.directory_offset, from, Durability::Durable));
    in_use_ = true;
    co_return {};
}

/// Tells the header where the bitmaps are, or that there are none.
Task<void> BitmapList::set_extension(Qcow2Node& node, std::uint64_t directory,
                                     std::uint64_t directory_bytes) {
    auto& header = node.header_;
    header.bitmaps = {directory_bytes == 0 ? 0 : static_cast<std::uint32_t>(bitmaps_.size()),
                      directory_bytes, directory};
    header.autoclear = directory_bytes == 0 ? header.autoclear & ~autoclear::kBitmaps
                                            : header.autoclear | autoclear::kBitmaps;
    DOPPEL_AWAIT_VOID(node.write_header());
    co_return {};
}

/// Writes the bits, clusters of zeroes left out.
Task<void> BitmapList::store_one(Qcow2Node& node, Bitmap& bitmap) {
    const auto cluster = node.geometry_.cluster();
    const auto clusters = node.geometry_.clusters_for(bitmap.words.size() * 8);
    std::vector<std::byte> bits(clusters << node.geometry_.cluster_bits);
    for (std::size_t i = 0; i < bitmap.words.size(); ++i)
        base::store_le(bits.data() + i * 8, bitmap.words[i]);
    std::vector<std::byte> table(clusters * 8);
    for (std::size_t i = 0; i < clusters; ++i) {
        const auto part = std::span<const std::byte>{bits}.subspan(i * cluster, cluster);
        if (all_zero(part))
            continue;
        DOPPEL_AWAIT(offset, node.allocate_metadata(cluster));
        const auto from = IoBuffer::of(part);
        DOPPEL_AWAIT_VOID(node.file_->write(offset, from, Durability::Cached));
        base::store_be(table.data() + i * 8, offset);
        stored_.push_back({offset, cluster});
    }
    bitmap.table_entries = static_cast<std::uint32_t>(clusters);
    DOPPEL_AWAIT(offset, node.allocate_metadata(std::max<std::size_t>(table.size(), 1)));
    bitmap.table_offset = offset;
    const auto from = IoBuffer::of(table);
    DOPPEL_AWAIT_VOID(node.file_->write(offset, from, Durability::Cached));
    stored_.push_back({offset, table.size()});
    co_return {};
}

Task<void> BitmapList::store(Qcow2Node& node) {
    if (!changed_) {
        if (in_use_) {
            const auto bytes = directory(false);
            const auto from = IoBuffer::of(bytes);
            DOPPEL_AWAIT_VOID(node.file_->write(node.header_.bitmaps.directory_offset, from,
                                                Durability::Durable));
        }
        in_use_ = false;
        co_return {};
    }
    const auto old = std::exchange(stored_, {});
    if (!old.empty())
        DOPPEL_AWAIT_VOID(set_extension(node, 0, 0)); // none are valid while they change
    for (auto& bitmap : bitmaps_)
        DOPPEL_AWAIT_VOID(store_one(node, bitmap));
    if (!bitmaps_.empty()) {
        const auto bytes = directory(false);
        DOPPEL_AWAIT(offset, node.allocate_metadata(bytes.size()));
        const auto from = IoBuffer::of(bytes);
        DOPPEL_AWAIT_VOID(node.file_->write(offset, from, Durability::Cached));
        stored_.push_back({offset, bytes.size()});
        DOPPEL_AWAIT_VOID(node.commit()); // refcounts and content first
        DOPPEL_AWAIT_VOID(set_extension(node, offset, bytes.size()));
    }
    for (const auto& range : old)
        node.free_later(range.offset >> node.geometry_.cluster_bits,
                        node.geometry_.clusters_for(range.bytes), false);
    changed_ = in_use_ = false;
    co_return {};
}

void BitmapList::mark(std::uint64_t offset, std::uint64_t length) {
    for (auto& bitmap : bitmaps_) {
        if (!bitmap.recording || bitmap.inconsistent || length == 0)
            continue;
        const auto last = (offset + length - 1) >> bitmap.granularity_bits;
        for (auto bit = offset >> bitmap.granularity_bits; bit <= last; ++bit)
            bitmap.words[bit / 64] |= std::uint64_t{1} << (bit % 64);
        changed_ = true;
    }
}

void BitmapList::resized(std::uint64_t size_bytes) {
    for (auto& bitmap : bitmaps_) {
        bitmap.words.resize(words_for(bitmap.granularity_bits));
        const auto granules = (size_bytes + (std::uint64_t{1} << bitmap.granularity_bits) - 1) >>
                              bitmap.granularity_bits;
        if (granules % 64 != 0 && !bitmap.words.empty()) // tail bits are zero
            bitmap.words.back() &= (std::uint64_t{1} << (granules % 64)) - 1;
        changed_ = true;
    }
}

std::vector<BitmapInfo> BitmapList::list() const {
    std::vector<BitmapInfo> list;
    for (const auto& bitmap : bitmaps_)
        list.push_back({bitmap.name, std::uint64_t{1} << bitmap.granularity_bits, bitmap.recording,
                        bitmap.inconsistent});
    return list;
}

Result<Bitmap*> BitmapList::find(const std::string& name) {
    const auto found = std::ranges::find(bitmaps_, name, &Bitmap::name);
    if (found == bitmaps_.end())
        return base::fail(Errc::NotFound,
                          fmt::format("'{}' has no bitmap '{}'", node_->name(), name));
    return &*found;
}

Result<void> BitmapList::add(const std::string& name, std::uint64_t granularity_bytes) {
    if (node_->header_.version < 3)
        return base::fail(Errc::Unsupported, "bitmaps want an image with compat 1.1");
    if (name.empty() || name.size() > 1023)
        return base::fail(Errc::InvalidArgument, "a bitmap's name has 1 to 1023 bytes");
    if (find(name))
        return base::fail(Errc::AlreadyExists,
                          fmt::format("'{}' has a bitmap '{}' already", node_->name(), name));
    if (!std::has_single_bit(granularity_bytes) || granularity_bytes < kMinGranularity ||
        granularity_bytes > kMaxGranularity)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("granularity {} is not a power of two from {} to {}",
                                      granularity_bytes, kMinGranularity, kMaxGranularity));
    Bitmap bitmap;
    bitmap.name = name;
    bitmap.granularity_bits = static_cast<unsigned>(std::countr_zero(granularity_bytes));
    if (words_for(bitmap.granularity_bits) * 8 > kMaxBitmapBytes || bitmaps_.size() >= kMaxBitmaps)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("the bitmap would have more than {} bytes", kMaxBitmapBytes),
                          "Use a larger granularity.");
    bitmap.words.resize(words_for(bitmap.granularity_bits));
    bitmaps_.push_back(std::move(bitmap));
    changed_ = true;
    return {};
}

Result<void> BitmapList::remove(const std::string& name) {
    DOPPEL_TRY(find(name));
    std::erase_if(bitmaps_, [&](const Bitmap& bitmap) { return bitmap.name == name; });
    changed_ = true;
    return {};
}

namespace {
Result<void> require_consistent(const Bitmap& bitmap) {
    if (bitmap.inconsistent)
        return base::fail(
            Errc::Corrupt,
            fmt::format("bitmap '{}' is inconsistent: it was in use when the image was "
                        "last open",
                        bitmap.name),
            "It can only be removed.");
    return {};
}
} // namespace

Result<void> BitmapList::clear(const std::string& name) {
    auto* bitmap = DOPPEL_TRY(find(name));
    DOPPEL_TRY_VOID(require_consistent(*bitmap));
    std::ranges::fill(bitmap->words, 0);
    changed_ = true;
    return {};
}

Result<void> BitmapList::set_recording(const std::string& name, bool recording) {
    auto* bitmap = DOPPEL_TRY(find(name));
    DOPPEL_TRY_VOID(require_consistent(*bitmap));
    bitmap->recording = recording;
    changed_ = true;
    return {};
}

Result<std::vector<BitmapStore::MarkedRange>> BitmapList::marked(const std::string& name) const {
    const auto found = std::ranges::find(bitmaps_, name, &Bitmap::name);
    if (found == bitmaps_.end())
        return base::fail(Errc::NotFound,
                          fmt::format("'{}' has no bitmap '{}'", node_->name(), name));
    DOPPEL_TRY_VOID(require_consistent(*found));
    std::vector<MarkedRange> ranges;
    for (std::size_t i = 0; i < found->words.size(); ++i) {
        for (auto word = found->words[i]; word != 0; word &= word - 1) {
            const auto bit = i * 64 + static_cast<unsigned>(std::countr_zero(word));
            const auto begin = static_cast<std::uint64_t>(bit) << found->granularity_bits;
            const auto end =
                std::min(begin + (std::uint64_t{1} << found->granularity_bits), node_->size());
            if (!ranges.empty() && ranges.back().second == begin)
                ranges.back().second = end;
            else
                ranges.emplace_back(begin, end);
        }
    }
    return ranges;
}

Result<void> BitmapList::merge(const std::string& target, const BitmapStore& from,
                               const std::string& source) {
    auto* bitmap = DOPPEL_TRY(find(target));
    DOPPEL_TRY_VOID(require_consistent(*bitmap));
    const auto ranges = DOPPEL_TRY(from.marked(source));
    for (const auto& [begin, end] : ranges) {
        if (end > node_->size())
            return base::fail(Errc::InvalidArgument,
                              fmt::format("bitmap '{}' belongs to a larger disk", source));
        const auto last = (end - 1) >> bitmap->granularity_bits;
        for (auto bit = begin >> bitmap->granularity_bits; bit <= last; ++bit)
            bitmap->words[bit / 64] |= std::uint64_t{1} << (bit % 64);
    }
    changed_ = true;
    return {};
}

} // namespace doppel::block::qcow2
