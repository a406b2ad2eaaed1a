// SPDX-License-Identifier: Apache-2.0
#include "memory/guest_ranges.hpp"

#include <algorithm>

namespace doppel::memory {

namespace {

/// Calls visit(gpa, bytes, done) for each stretch of [offset, offset + bytes) until it says false;
/// how many bytes were visited.
template <typename Visit>
std::uint64_t each_stretch(std::span<const GuestRange> ranges, std::uint64_t offset,
                           std::uint64_t bytes, Visit&& visit) {
    std::uint64_t done = 0;
    for (const auto& range : ranges) {
        if (offset >= range.bytes) {
            offset -= range.bytes;
            continue;
        }
        const auto here = std::min(range.bytes - offset, bytes - done);
        if (here == 0 || !visit(range.gpa + offset, here, done))
            break;
        done += here;
        offset = 0;
    }
    return done;
}

} // namespace

std::uint64_t total_bytes(std::span<const GuestRange> ranges) noexcept {
    std::uint64_t total = 0;
    for (const auto& range : ranges)
        total += range.bytes;
    return total;
}

std::vector<GuestRange> slice(std::span<const GuestRange> ranges, std::uint64_t offset,
                              std::uint64_t bytes) {
    std::vector<GuestRange> part;
    each_stretch(ranges, offset, bytes, [&](Gpa gpa, std::uint64_t length, std::uint64_t) {
        part.push_back({gpa, length});
        return true;
    });
    return part;
}

std::size_t read_ranges(const GuestMemory& memory, std::span<const GuestRange> ranges,
                        std::uint64_t offset, std::span<std::byte> to) noexcept {
    return each_stretch(ranges, offset, to.size(),
                        [&](Gpa gpa, std::uint64_t length, std::uint64_t done) {
                            return memory.read(gpa, to.subspan(done, length));
                        });
}

std::size_t write_ranges(GuestMemory& memory, std::span<const GuestRange> ranges,
                         std::uint64_t offset, std::span<const std::byte> from) noexcept {
    return each_stretch(ranges, offset, from.size(),
                        [&](Gpa gpa, std::uint64_t length, std::uint64_t done) {
                            return memory.write(gpa, from.subspan(done, length));
                        });
}

std::optional<PinnedBuffer> PinnedBuffer::pin(GuestMemory& memory,
                                              std::span<const GuestRange> ranges, Access access) {
    PinnedBuffer buffer;
    buffer.memory_ = &memory;
    buffer.access_ = access;
    buffer.ranges_.assign(ranges.begin(), ranges.end());
    for (auto range : ranges) {
        while (range.bytes != 0) { // one piece per region of RAM
            const auto place = memory.find(range.gpa);
            if (!place)
                return std::nullopt;
            const auto here = std::min(place->left_bytes, range.bytes);
            buffer.pieces_.push_back({place->host, here});
            buffer.bytes_ += here;
            range = {range.gpa + here, range.bytes - here};
        }
    }
    buffer.announce();
    return buffer;
}

void PinnedBuffer::complete() noexcept { announce(); }

/// Before the call: nothing executes what is about to change. After it: a page that was harvested
/// or translated while the kernel wrote is dirty again, or its code is stale.
void PinnedBuffer::announce() noexcept {
    if (access_ == Access::KernelReads || memory_ == nullptr)
        return;
    for (const auto& range : ranges_) {
        for (std::uint64_t done = 0; done < range.bytes;) {
            const auto gpa = range.gpa + done;
            const auto here = std::min(kPageBytes - gpa.offset_in_page(), range.bytes - done);
            if (memory_->prepare_engine_write(gpa, here))
                memory_->finish_engine_write(gpa, here);
            done += here;
        }
    }
}

} // namespace doppel::memory
