// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/fw_cfg.hpp"

#include <algorithm>
#include <array>
#include <bit>

#include <fmt/core.h>

#include "base/bytes.hpp"

namespace doppel::devices {

namespace {

constexpr std::uint64_t kSelectorOffset = 0;
constexpr std::uint64_t kDataOffset = 1;
constexpr std::uint64_t kDmaHighOffset = 4;
constexpr std::uint64_t kDmaLowOffset = 8;

constexpr std::uint32_t kIdTraditional = 1, kIdDma = 2;
constexpr std::uint64_t kDmaSignature = 0x5145'4d55'2043'4647; // "QEMU CFG"

// Control word of a DMA request.
constexpr std::uint32_t kError = 1u << 0;
constexpr std::uint32_t kRead = 1u << 1;
constexpr std::uint32_t kSkip = 1u << 2;
constexpr std::uint32_t kSelect = 1u << 3;
constexpr std::uint32_t kWrite = 1u << 4;

struct DirectoryEntry { // big-endian
    std::array<std::byte, 4> size_bytes;
    std::array<std::byte, 2> key;
    std::array<std::byte, 2> reserved;
    std::array<char, 56> name; // NUL-terminated
};
static_assert(sizeof(DirectoryEntry) == 64);

std::vector<std::byte> bytes_of(std::string_view text) {
    std::vector<std::byte> out(text.size());
    std::ranges::transform(text, out.begin(), [](char c) { return static_cast<std::byte>(c); });
    return out;
}

} // namespace

FwCfg::FwCfg(memory::GuestMemory& memory) : memory_{memory} {
    items_[Signature] = bytes_of("QEMU");
    std::vector<std::byte> id(4);
    base::store_le<std::uint32_t>(id.data(), kIdTraditional | kIdDma);
    items_[Id] = std::move(id);
    rebuild_directory();
}

base::Result<void> FwCfg::add_file(std::string_view name, std::vector<std::byte> content) {
    if (name.empty() || name.size() > kMaxNameBytes)
        return base::fail(base::Errc::InvalidArgument,
                          fmt::format("fw_cfg file name '{}' has {} characters, allowed 1..{}",
                                      name, name.size(), kMaxNameBytes));
    if (std::ranges::find(files_, name, &File::name) != files_.end())
        return base::fail(base::Errc::AlreadyExists,
                          fmt::format("fw_cfg file '{}' is there already", name));
    if (files_.size() >= 0x1000 || content.size() > UINT32_MAX)
        return base::fail(base::Errc::OutOfRange, "fw_cfg has no room for one more file");
    const auto key = static_cast<std::uint16_t>(FirstFile + files_.size());
    files_.push_back({std::string{name}, key, static_cast<std::uint32_t>(content.size())});
    items_[key] = std::move(content);
    rebuild_directory();
    return {};
}

void FwCfg::set_item(std::uint16_t key, std::vector<std::byte> content) {
    items_[key] = std::move(content);
}

void FwCfg::rebuild_directory() {
    std::vector<std::byte> out(4 + files_.size() * sizeof(DirectoryEntry));
    base::store_be(out.data(), static_cast<std::uint32_t>(files_.size()));
    auto* at = out.data() + 4;
    for (const auto& file : files_) {
        DirectoryEntry entry{};
        base::store_be(entry.size_bytes.data(), file.size_bytes);
        base::store_be(entry.key.data(), file.key);
        std::ranges::copy(file.name, entry.name.begin());
        std::ranges::copy(std::as_bytes(std::span{&entry, 1}), at);
        at += sizeof entry;
    }
    items_[FileDirectory] = std::move(out);
}

void FwCfg::reset() {
    const base::MutexLock lock{mutex_};
    state_ = {};
}

// --- the selected item ------------------------------------------------------------------------

std::span<const std::byte> FwCfg::rest() const {
    const auto item = items_.find(state_.selector);
    if (item == items_.end() || state_.offset >= item->second.size())
        return {};
    return std::span{item->second}.subspan(state_.offset);
}

void FwCfg::select(std::uint16_t key) {
    state_.selector = key;
    state_.offset = 0;
}

void FwCfg::skip(std::uint32_t bytes) {
    state_.offset = bytes > UINT32_MAX - state_.offset ? UINT32_MAX : state_.offset + bytes;
}

std::uint8_t FwCfg::read_byte() {
    const auto left = rest();
    if (left.empty())
        return 0; // beyond the end there are zeros
    skip(1);
    return static_cast<std::uint8_t>(left[0]);
}

// --- ports ------------------------------------------------------------------------------------

std::uint64_t FwCfg::io_read(bus::IoAccess io) {
    if (io.offset == kDmaHighOffset && io.size == 4)
        return std::byteswap(static_cast<std::uint32_t>(kDmaSignature >> 32));
    if (io.offset == kDmaLowOffset && io.size == 4)
        return std::byteswap(static_cast<std::uint32_t>(kDmaSignature));
    if (io.offset != kDataOffset)
        return ~0ull;
    const base::MutexLock lock{mutex_};
    return read_byte();
}

void FwCfg::io_write(bus::IoAccess io, std::uint64_t value) {
    const base::MutexLock lock{mutex_};
    if (io.offset == kSelectorOffset && io.size == 2)
        select(static_cast<std::uint16_t>(value));
    if (io.offset == kDmaHighOffset && io.size == 4)
        state_.dma_high = std::byteswap(static_cast<std::uint32_t>(value));
    if (io.offset == kDmaLowOffset && io.size == 4) {
        const auto low = std::byteswap(static_cast<std::uint32_t>(value));
        run_dma({std::uint64_t{std::exchange(state_.dma_high, 0u)} << 32 | low});
    }
}

/// A request is { u32 control; u32 length; u64 address; }, big-endian. Its control word becomes
/// zero when it is done, or the error bit.
void FwCfg::run_dma(memory::Gpa request) {
    std::array<std::byte, 16> raw{};
    if (!memory_.read(request, raw))
        return; // the guest named no RAM: there is nowhere to report it
    const auto control = base::load_be<std::uint32_t>(raw.data());
    const auto length_bytes = base::load_be<std::uint32_t>(raw.data() + 4);
    const memory::Gpa to{base::load_be<std::uint64_t>(raw.data() + 8)};
    const bool ok = transfer(control, length_bytes, to);
    std::array<std::byte, 4> answer{};
    base::store_be(answer.data(), ok ? 0u : kError);
    if (!memory_.write(request, answer))
        return;
}

bool FwCfg::transfer(std::uint32_t control, std::uint32_t length_bytes, memory::Gpa to) {
    if ((control & kSelect) != 0)
        select(static_cast<std::uint16_t>(control >> 16));
    if ((control & kRead) != 0) {
        const auto left = rest();
        const auto copied = std::min<std::uint64_t>(left.size(), length_bytes);
        if (!memory_.contains(to, length_bytes) || !memory_.write(to, left.first(copied)) ||
            !memory_.fill(to + copied, length_bytes - copied, std::byte{0}))
            return false;
        skip(length_bytes);
        return true;
    }
    if ((control & kWrite) != 0)
        return false; // nothing here can be written
    if ((control & kSkip) != 0)
        skip(length_bytes);
    return true;
}

} // namespace doppel::devices
