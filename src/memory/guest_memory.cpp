// SPDX-License-Identifier: Apache-2.0
#include "memory/guest_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include <fmt/core.h>

namespace doppel::memory {

using base::Errc;
using base::Result;

namespace {

Result<void> check_regions(std::span<const RamRegion> regions) {
    std::uint64_t previous_end = 0;
    for (const auto& region : regions) {
        const auto end = region.base.value + region.size_bytes;
        if (region.size_bytes == 0 || (region.base.value | region.size_bytes) & kPageMask ||
            end < region.base.value || region.base.value < previous_end)
            return base::fail(Errc::InvalidArgument,
                              fmt::format("RAM region at {:#x} of {} bytes is empty, not page "
                                          "aligned or out of order",
                                          region.base.value, region.size_bytes));
        previous_end = end;
    }
    return {};
}

std::size_t bitmap_words(std::uint64_t pages) {
    return static_cast<std::size_t>((pages + 63) / 64);
}

} // namespace

Result<std::unique_ptr<GuestMemory>> GuestMemory::create(std::span<const RamRegion> regions) {
    DOPPEL_TRY_VOID(check_regions(regions));
    auto memory = std::unique_ptr<GuestMemory>{new GuestMemory};
    memory->regions_.assign(regions.begin(), regions.end());
    for (const auto& region : regions) {
        memory->region_offsets_.push_back(memory->size_bytes_);
        memory->size_bytes_ += region.size_bytes;
    }
    const auto size = memory->size_bytes_;
    memory->fd_.reset(::memfd_create("doppel-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!memory->fd_ || ::ftruncate(memory->fd_.get(), static_cast<off_t>(size)) != 0)
        return base::fail_errno(errno, fmt::format("create {} bytes of guest RAM", size));
    // Sealed: no other holder of the descriptor can shrink it under the vCPUs (SIGBUS).
    if (::fcntl(memory->fd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        return base::fail_errno(errno, "seal guest RAM");
    void* mapping = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                           memory->fd_.get(), 0);
    if (mapping == MAP_FAILED)
        return base::fail_errno(errno, fmt::format("map {} bytes of guest RAM", size),
                                "give the VM less memory");
    memory->mapping_ = static_cast<std::byte*>(mapping);
    ::madvise(mapping, size, MADV_HUGEPAGE); // a wish: shared-memory huge pages are often off
    ::madvise(mapping, size, MADV_DONTDUMP); // a guest's secrets do not belong in a core file
    const auto pages = size / kPageBytes;
    memory->page_states_ = std::make_unique<std::atomic<PageState>[]>(pages);
    memory->dirty_ = std::make_unique<std::atomic<std::uint64_t>[]>(bitmap_words(pages));
    return memory;
}

GuestMemory::~GuestMemory() {
    if (mapping_ != nullptr)
        ::munmap(mapping_, size_bytes_);
}

Gpa GuestMemory::end() const {
    return regions_.empty() ? Gpa{} : regions_.back().base + regions_.back().size_bytes;
}

std::optional<GuestMemory::Place> GuestMemory::find(Gpa gpa) const noexcept {
    for (std::size_t i = 0; i < regions_.size(); ++i) {
        const auto& region = regions_[i];
        const auto offset = gpa.value - region.base.value; // wraps below the base: then too large
        if (offset < region.size_bytes) {
            const auto at = region_offsets_[i] + offset;
            return Place{mapping_ + at, at / kPageBytes, region.size_bytes - offset};
        }
    }
    return std::nullopt;
}

bool GuestMemory::contains(Gpa gpa, std::uint64_t length_bytes) const noexcept {
    while (length_bytes != 0) {
        const auto place = find(gpa);
        if (!place)
            return false;
        const auto here = std::min(place->left_bytes, length_bytes);
        gpa = gpa + here;
        length_bytes -= here;
    }
    return true;
}

/// Calls copy(Place, gpa, length, done) for each stretch that lies in one page.
template <typename Copy>
bool GuestMemory::walk(Gpa gpa, std::uint64_t length_bytes, Copy&& copy) const {
    if (!contains(gpa, length_bytes))
        return false;
    std::uint64_t done = 0;
    while (done < length_bytes) {
        const Gpa here = gpa + done;
        const auto length = std::min(kPageBytes - here.offset_in_page(), length_bytes - done);
        copy(find(here).value(), here, length, done);
        done += length;
    }
    return true;
}

bool GuestMemory::read(Gpa gpa, std::span<std::byte> to) const noexcept {
    return walk(gpa, to.size(), [&](const Place& place, Gpa, std::uint64_t length, auto done) {
        std::memcpy(to.data() + done, place.host, length);
    });
}

bool GuestMemory::write(Gpa gpa, std::span<const std::byte> from) noexcept {
    return walk(gpa, from.size(),
                [&](const Place& place, Gpa here, std::uint64_t length, auto done) {
                    const bool watched = prepare_engine_write(here, length);
                    std::memcpy(place.host, from.data() + done, length);
                    finish_device_write(here, length, watched);
                });
}

bool GuestMemory::fill(Gpa gpa, std::uint64_t length_bytes, std::byte value) noexcept {
    return walk(gpa, length_bytes, [&](const Place& place, Gpa here, std::uint64_t length, auto) {
        const bool watched = prepare_engine_write(here, length);
        std::memset(place.host, static_cast<int>(value), length);
        finish_device_write(here, length, watched);
    });
}

/// No vCPU's safepoint holds a device up: a page that was plain when it began to write may have
/// become a code page since, translated from old bytes. The fence keeps the look behind the write;
/// whoever translates sets the state first and reads the bytes then (tests/model/code_page_test).
void GuestMemory::finish_device_write(Gpa gpa, std::uint64_t length_bytes, bool watched) noexcept {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (watched || (watcher_ != nullptr && (page_state(gpa) & kPageCode) != 0))
        finish_engine_write(gpa, length_bytes);
}

/// Calls part(gpa, done, length) for each stretch that lies in one region.
template <typename Part>
bool GuestMemory::by_region(std::uint64_t offset, std::uint64_t length, Part&& part) const {
    if (offset > size_bytes_ || length > size_bytes_ - offset)
        return false;
    std::uint64_t done = 0;
    for (std::size_t i = 0; i < regions_.size() && done < length; ++i) {
        const auto inside = offset + done - region_offsets_[i];
        if (inside >= regions_[i].size_bytes)
            continue;
        const auto here = std::min(regions_[i].size_bytes - inside, length - done);
        if (!part(regions_[i].base + inside, done, here))
            return false;
        done += here;
    }
    return true;
}

bool GuestMemory::read_linear(std::uint64_t offset, std::span<std::byte> to) const noexcept {
    return by_region(offset, to.size(), [&](Gpa gpa, std::uint64_t done, std::uint64_t length) {
        return read(gpa, to.subspan(done, length));
    });
}

bool GuestMemory::write_linear(std::uint64_t offset, std::span<const std::byte> from) noexcept {
    return by_region(offset, from.size(), [&](Gpa gpa, std::uint64_t done, std::uint64_t length) {
        return write(gpa, from.subspan(done, length));
    });
}

std::uint64_t GuestMemory::next_used(std::uint64_t offset) const noexcept {
    const auto found = ::lseek(fd_.get(), static_cast<off_t>(offset), SEEK_DATA);
    if (found >= 0)
        return std::min(static_cast<std::uint64_t>(found), size_bytes_);
    return errno == ENXIO ? size_bytes_ : offset; // no such page; or the kernel cannot tell
}

std::byte* GuestMemory::engine_page(Gpa page) const noexcept {
    const auto place = find(page);
    return place ? place->host : nullptr;
}

GuestMemory::PageState GuestMemory::page_state(Gpa page) const noexcept {
    const auto place = find(page);
    return place ? page_states_[place->page_index].load(std::memory_order_acquire) : PageState{0};
}

std::vector<GuestMemory::EngineRegion> GuestMemory::engine_regions() const {
    std::vector<EngineRegion> result;
    result.reserve(regions_.size());
    for (std::size_t i = 0; i < regions_.size(); ++i)
        result.push_back({regions_[i].base, regions_[i].size_bytes, mapping_ + region_offsets_[i],
                          &page_states_[region_offsets_[i] / kPageBytes]});
    return result;
}

bool GuestMemory::prepare_engine_write(Gpa gpa, std::uint64_t length_bytes) noexcept {
    const auto place = find(gpa);
    if (!place)
        return false;
    const auto state = page_states_[place->page_index].load(std::memory_order_acquire);
    if (state == 0)
        return false;
    if (state & kPageClean)
        mark_dirty(place->page_index);
    if (!(state & kPageCode) || watcher_ == nullptr)
        return false;
    watcher_->on_code_write(gpa, length_bytes, CodeWatcher::Moment::Before);
    return true;
}

void GuestMemory::finish_engine_write(Gpa gpa, std::uint64_t length_bytes) noexcept {
    watcher_->on_code_write(gpa, length_bytes, CodeWatcher::Moment::After);
}

void GuestMemory::set_code_page(Gpa page, bool has_code) noexcept {
    const auto place = find(page);
    if (!place)
        return;
    auto& state = page_states_[place->page_index];
    if (has_code)
        state.fetch_or(kPageCode, std::memory_order_acq_rel);
    else
        state.fetch_and(static_cast<PageState>(~kPageCode), std::memory_order_acq_rel);
}

void GuestMemory::mark_dirty(std::uint64_t page_index) noexcept {
    // The bit first, then the state: a writer that sees the page no longer clean may rely on it.
    dirty_[page_index / 64].fetch_or(1ull << (page_index % 64), std::memory_order_release);
    page_states_[page_index].fetch_and(static_cast<PageState>(~kPageClean),
                                       std::memory_order_acq_rel);
}

void GuestMemory::note_engine_writes(Gpa region, std::span<const std::uint64_t> bits) noexcept {
    const auto place = find(region);
    if (!place)
        return;
    const auto pages = place->left_bytes / kPageBytes;
    for (std::size_t word = 0; word < bits.size(); ++word)
        for (auto left = bits[word]; left != 0; left &= left - 1)
            if (const auto page = word * 64 + static_cast<unsigned>(std::countr_zero(left));
                page < pages)
                mark_dirty(place->page_index + page);
}

void GuestMemory::start_dirty_log() {
    if (write_log_ != nullptr && !is_logging_)
        write_log_->start();
    is_logging_ = true;
    harvest_dirty_log();
}

void GuestMemory::stop_dirty_log() {
    if (write_log_ != nullptr && is_logging_)
        write_log_->stop();
    is_logging_ = false;
    for (std::uint64_t i = 0; i < size_bytes_ / kPageBytes; ++i)
        page_states_[i].fetch_and(static_cast<PageState>(~kPageClean));
}

std::vector<std::uint64_t> GuestMemory::harvest_dirty_log() {
    if (write_log_ != nullptr && is_logging_)
        write_log_->collect(*this);
    const auto pages = size_bytes_ / kPageBytes;
    std::vector<std::uint64_t> bitmap(bitmap_words(pages));
    for (std::size_t i = 0; i < bitmap.size(); ++i)
        bitmap[i] = dirty_[i].exchange(0, std::memory_order_acq_rel);
    for (std::uint64_t i = 0; i < pages; ++i)
        page_states_[i].fetch_or(kPageClean, std::memory_order_acq_rel);
    return bitmap;
}

} // namespace doppel::memory
