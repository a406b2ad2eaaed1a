// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/virtio_blk.hpp"

#include <algorithm>
#include <array>
#include <bit>

#include "base/bytes.hpp"
#include "base/log.hpp"

namespace doppel::devices {

namespace {

// Feature bits (§5.2.3).
constexpr std::uint64_t VIRTIO_BLK_F_SEG_MAX = 1u << 2, VIRTIO_BLK_F_RO = 1u << 5,
                        VIRTIO_BLK_F_BLK_SIZE = 1u << 6, VIRTIO_BLK_F_FLUSH = 1u << 9,
                        VIRTIO_BLK_F_TOPOLOGY = 1u << 10, VIRTIO_BLK_F_CONFIG_WCE = 1u << 11,
                        VIRTIO_BLK_F_DISCARD = 1u << 13, VIRTIO_BLK_F_WRITE_ZEROES = 1u << 14;
// Request types and status (§5.2.6).
constexpr std::uint32_t VIRTIO_BLK_T_IN = 0, VIRTIO_BLK_T_OUT = 1, VIRTIO_BLK_T_FLUSH = 4,
                        VIRTIO_BLK_T_GET_ID = 8, VIRTIO_BLK_T_DISCARD = 11,
                        VIRTIO_BLK_T_WRITE_ZEROES = 13;
constexpr std::uint8_t VIRTIO_BLK_S_OK = 0, VIRTIO_BLK_S_IOERR = 1, VIRTIO_BLK_S_UNSUPP = 2;
constexpr std::uint32_t VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1;

constexpr std::uint64_t kSectorBytes = 512; // whatever the block size, §5.2.6
constexpr std::uint16_t kQueueSize = 256;
constexpr std::uint32_t kMaxSegments = kQueueSize - 2;
constexpr std::uint32_t kMaxChangeSectors = 1u << 21; // of one discard or write-zeroes range
constexpr std::uint32_t kMaxChangeRanges = 64;

// struct virtio_blk_config (§5.2.4).
constexpr std::size_t kCapacity = 0, kSegMax = 12, kBlkSize = 20, kPhysicalBlockExp = 24,
                      kMinIoSize = 26, kOptIoSize = 28, kWriteback = 32, kMaxDiscardSectors = 36,
                      kMaxDiscardSeg = 40, kDiscardAlignment = 44, kMaxWriteZeroesSectors = 48,
                      kMaxWriteZeroesSeg = 52, kWriteZeroesMayUnmap = 56, kConfigBytes = 60;

struct Header {
    std::uint32_t type;
    std::uint32_t reserved;
    std::uint64_t sector;
};

struct ChangeRange {
    std::uint64_t sector;
    std::uint32_t sectors;
    std::uint32_t flags;
};

std::uint64_t features_of(const block::Drive& drive) {
    const auto common =
        VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_BLK_SIZE | VIRTIO_BLK_F_TOPOLOGY | VIRTIO_BLK_F_FLUSH;
    return common | (drive.read_only() ? VIRTIO_BLK_F_RO
                                       : VIRTIO_BLK_F_CONFIG_WCE | VIRTIO_BLK_F_DISCARD |
                                             VIRTIO_BLK_F_WRITE_ZEROES);
}

/// Below it the host reads, modifies and writes.
std::uint64_t physical_block_bytes(const block::Drive& drive) {
    return std::max<std::uint64_t>(kSectorBytes, drive.limits().request_alignment);
}

} // namespace

/// One chain on its way through the drive.
struct VirtioBlk::Request {
    DescriptorChain chain;
    memory::PinnedBuffer data;
    std::uint64_t written = 0; // bytes of the driver's buffer, without the status
    std::size_t steps = 0;     // parts that the drive has not completed
    std::uint8_t status = VIRTIO_BLK_S_OK;

    std::uint64_t writable_bytes() const { return total_bytes(chain.writable()); }
};

VirtioBlk::VirtioBlk(block::Drive& drive, Options options, memory::GuestMemory& memory,
                     base::EventLoop& worker)
    : StatefulVirtioDevice{{.name = "virtio-blk",
                            .id = 2,
                            .class_code = 0x01'00'00,
                            .features = features_of(drive),
                            .queue_sizes = {kQueueSize}},
                           memory,
                           worker},
      drive_{drive}, options_{std::move(options)} {}

VirtioBlk::~VirtioBlk() = default;

// --- configuration ----------------------------------------------------------------------------

void VirtioBlk::config_bytes(std::vector<std::byte>& out) const {
    out.resize(kConfigBytes);
    const auto put = [&](std::size_t at, auto value) { base::store_le(out.data() + at, value); };
    const auto physical = static_cast<std::uint32_t>(physical_block_bytes(drive_) / kSectorBytes);
    put(kCapacity, drive_.size() / kSectorBytes);
    put(kSegMax, kMaxSegments);
    put(kBlkSize, static_cast<std::uint32_t>(kSectorBytes));
    put(kPhysicalBlockExp, static_cast<std::uint8_t>(std::countr_zero(physical)));
    put(kMinIoSize, static_cast<std::uint16_t>(physical));
    put(kOptIoSize, std::uint32_t{0});
    put(kWriteback, static_cast<std::uint8_t>(state_.writeback));
    if (drive_.read_only())
        return;
    put(kMaxDiscardSectors, kMaxChangeSectors);
    put(kMaxDiscardSeg, kMaxChangeRanges);
    put(kDiscardAlignment, physical);
    put(kMaxWriteZeroesSectors, kMaxChangeSectors);
    put(kMaxWriteZeroesSeg, kMaxChangeRanges);
    put(kWriteZeroesMayUnmap, std::uint8_t{1});
}

void VirtioBlk::config_written(std::uint32_t offset, std::uint8_t size, std::uint64_t value) {
    if (offset == kWriteback && size == 1 && has_feature(VIRTIO_BLK_F_CONFIG_WCE))
        state_.writeback = (value & 1) != 0;
}

/// §5.2.5.2: a driver that cannot flush, or chose so, sees a write-through cache.
block::Durability VirtioBlk::durability() const {
    return has_feature(VIRTIO_BLK_F_FLUSH) && state_.writeback ? block::Durability::Cached
                                                               : block::Durability::Durable;
}

// --- requests ---------------------------------------------------------------------------------

VirtioDevice::Serve VirtioBlk::serve_queue(unsigned index) {
    is_serving_ = true;
    auto& queue = virtqueue(index);
    for (unsigned left = kQueueSize; left != 0; --left) {
        auto& request = take_request();
        if (!queue.pop(request.chain)) {
            free_.push_back(&request);
            break;
        }
        begin(request);
    }
    is_serving_ = false;
    return Serve::WantsMore;
}

VirtioBlk::Request& VirtioBlk::take_request() {
    if (free_.empty())
        free_.push_back(requests_.emplace_back(std::make_unique<Request>()).get());
    auto& request = *free_.back();
    free_.pop_back();
    request.data = {};
    request.written = request.steps = 0;
    request.status = VIRTIO_BLK_S_OK;
    return request;
}

void VirtioBlk::begin(Request& request) {
    Header header{};
    if (read_ranges(memory(), request.chain.readable(), 0,
                    std::as_writable_bytes(std::span{&header, 1})) != sizeof header ||
        request.writable_bytes() == 0) {
        driver_failed("a block request without header or status");
        virtqueue(0).push(request.chain.head, 0);
        free_.push_back(&request);
        return;
    }
    switch (header.type) {
    case VIRTIO_BLK_T_IN: return read(request, header.sector);
    case VIRTIO_BLK_T_OUT: return write(request, header.sector);
    case VIRTIO_BLK_T_FLUSH:
        request.steps = 1;
        return drive_.flush([this, &request](auto result) { one_step_done(request, result); });
    case VIRTIO_BLK_T_GET_ID: return get_id(request);
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES: return change_ranges(request, header.type);
    default: return finish(request, VIRTIO_BLK_S_UNSUPP);
    }
}

/// Sectors beyond any size become an offset beyond any size, which the drive refuses.
std::uint64_t offset_of(std::uint64_t sector) {
    return sector > UINT64_MAX / kSectorBytes / 2 ? UINT64_MAX / 2 : sector * kSectorBytes;
}

void VirtioBlk::read(Request& request, std::uint64_t sector) {
    const auto bytes = request.writable_bytes() - 1; // the last is the status
    auto data = memory::PinnedBuffer::pin(memory(), slice(request.chain.writable(), 0, bytes),
                                          memory::PinnedBuffer::Access::KernelWrites);
    if (!data || bytes % kSectorBytes != 0)
        return finish(request, VIRTIO_BLK_S_IOERR);
    request.data = std::move(*data);
    request.written = bytes;
    request.steps = 1;
    drive_.read(offset_of(sector), block::IoBuffer{request.data.pieces()},
                [this, &request](auto result) { one_step_done(request, result); });
}

void VirtioBlk::write(Request& request, std::uint64_t sector) {
    const auto bytes = total_bytes(request.chain.readable()) - sizeof(Header);
    auto data =
        memory::PinnedBuffer::pin(memory(), slice(request.chain.readable(), sizeof(Header), bytes),
                                  memory::PinnedBuffer::Access::KernelReads);
    if (!data || bytes % kSectorBytes != 0)
        return finish(request, VIRTIO_BLK_S_IOERR);
    request.data = std::move(*data);
    request.steps = 1;
    drive_.write(offset_of(sector), block::IoBuffer{request.data.pieces()}, durability(),
                 [this, &request](auto result) { one_step_done(request, result); });
}

void VirtioBlk::get_id(Request& request) {
    std::array<char, State::kSerialBytes> id{}; // without a terminator when full, §5.2.6
    options_.serial.copy(id.data(), id.size());
    const auto room = std::min<std::uint64_t>(id.size(), request.writable_bytes() - 1);
    request.written = write_ranges(memory(), request.chain.writable(), 0,
                                   std::as_bytes(std::span{id}.first(room)));
    finish(request, VIRTIO_BLK_S_OK);
}

/// Discard and write zeroes: a list of ranges (§5.2.6.2), all checked before the first is begun.
void VirtioBlk::change_ranges(Request& request, std::uint32_t type) {
    const auto bytes = total_bytes(request.chain.readable()) - sizeof(Header);
    std::vector<ChangeRange> ranges(
        std::min<std::uint64_t>(bytes / sizeof(ChangeRange), kMaxChangeRanges));
    const auto allowed_flags =
        type == VIRTIO_BLK_T_WRITE_ZEROES ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;
    if (ranges.empty() || bytes != ranges.size() * sizeof(ChangeRange))
        return finish(request, VIRTIO_BLK_S_IOERR);
    read_ranges(memory(), request.chain.readable(), sizeof(Header),
                std::as_writable_bytes(std::span{ranges}));
    for (const auto& range : ranges) {
        if ((range.flags & ~allowed_flags) != 0)
            return finish(request, VIRTIO_BLK_S_UNSUPP);
        if (range.sectors > kMaxChangeSectors)
            return finish(request, VIRTIO_BLK_S_IOERR);
    }
    request.steps = ranges.size();
    for (const auto& range : ranges) {
        const auto done = [this, &request](auto result) { one_step_done(request, result); };
        const auto at = offset_of(range.sector);
        const auto length = range.sectors * kSectorBytes;
        if (type == VIRTIO_BLK_T_DISCARD)
            drive_.discard(at, length, done);
        else
            drive_.write_zeroes(at, length,
                                range.flags != 0 ? block::Unmap::Allow : block::Unmap::Keep,
                                durability(), done);
    }
}

/// On the worker; inside the call that submits, or later without the lock.
void VirtioBlk::one_step_done(Request& request, const base::Result<void>& result) {
    const auto step = [&] {
        if (!result) {
            static base::RateLimit limit{20};
            if (limit.allow())
                base::log_warning("virtio-blk: {}", result.error().message());
            request.status = VIRTIO_BLK_S_IOERR;
        }
        if (--request.steps == 0)
            finish(request, request.status);
    };
    if (is_serving_)
        step();
    else
        give_back(step);
}

void VirtioBlk::finish(Request& request, std::uint8_t status) {
    request.data.complete();
    if (status != VIRTIO_BLK_S_OK)
        request.written = 0;
    const auto writable = request.writable_bytes();
    write_ranges(memory(), request.chain.writable(), writable - 1,
                 std::as_bytes(std::span{&status, 1}));
    // §2.7.8.2: so many bytes from the beginning; the status is the last of the buffer.
    const bool is_whole = request.written + 1 == writable;
    virtqueue(0).push(request.chain.head,
                      static_cast<std::uint32_t>(is_whole ? writable : request.written));
    free_.push_back(&request);
}

} // namespace doppel::devices
