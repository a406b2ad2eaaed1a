// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/virtio_net.hpp"

#include <algorithm>
#include <array>

#include "base/bytes.hpp"
#include "net/internet_checksum.hpp"
#include "net/tcp_segment.hpp"

namespace doppel::devices {

namespace {

// Feature bits (§5.1.3).
constexpr std::uint64_t VIRTIO_NET_F_CSUM = 1u << 0, VIRTIO_NET_F_GUEST_CSUM = 1u << 1,
                        VIRTIO_NET_F_CTRL_GUEST_OFFLOADS = 1u << 2, VIRTIO_NET_F_MTU = 1u << 3,
                        VIRTIO_NET_F_MAC = 1u << 5, VIRTIO_NET_F_GUEST_TSO4 = 1u << 7,
                        VIRTIO_NET_F_HOST_TSO4 = 1u << 11, VIRTIO_NET_F_MRG_RXBUF = 1u << 15,
                        VIRTIO_NET_F_STATUS = 1u << 16, VIRTIO_NET_F_CTRL_VQ = 1u << 17,
                        VIRTIO_NET_F_CTRL_RX = 1u << 18, VIRTIO_NET_F_CTRL_RX_EXTRA = 1u << 20,
                        VIRTIO_NET_F_CTRL_MAC_ADDR = 1u << 23;
// struct virtio_net_hdr (§5.1.6).
constexpr std::uint8_t VIRTIO_NET_HDR_F_NEEDS_CSUM = 1, VIRTIO_NET_HDR_F_DATA_VALID = 2;
constexpr std::uint8_t VIRTIO_NET_HDR_GSO_NONE = 0, VIRTIO_NET_HDR_GSO_TCPV4 = 1;
// Control queue (§5.1.6.5).
constexpr std::uint8_t VIRTIO_NET_CTRL_RX = 0, VIRTIO_NET_CTRL_MAC = 1,
                       VIRTIO_NET_CTRL_GUEST_OFFLOADS = 5;
constexpr std::uint8_t VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET = 0;
constexpr std::uint8_t VIRTIO_NET_CTRL_MAC_TABLE_SET = 0, VIRTIO_NET_CTRL_MAC_ADDR_SET = 1;
constexpr std::uint8_t VIRTIO_NET_OK = 0, VIRTIO_NET_ERR = 1;
constexpr std::uint16_t VIRTIO_NET_S_LINK_UP = 1;

constexpr unsigned kReceive = 0, kControl = 2; // and 1, to send
constexpr std::uint16_t kQueueSize = 256, kControlQueueSize = 64;
constexpr std::size_t kMaxCommandBytes = 0x10000; // of the control queue
constexpr std::uint8_t kBasicModes = 2; // commands of VIRTIO_NET_CTRL_RX without the extra ones
constexpr std::size_t kMacBytes = 6, kEthernetBytes = 14;
// struct virtio_net_config (§5.1.4).
constexpr std::size_t kConfigStatus = 6, kConfigPairs = 8, kConfigMtu = 10, kConfigBytes = 12;

/// What the driver may give up while it runs (§5.1.6.5.6).
constexpr std::uint64_t kOffloads = VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_TSO4;

std::uint64_t features_of(const net::Backend& backend, const VirtioNet::Options& options) {
    auto features = VIRTIO_NET_F_CSUM | VIRTIO_NET_F_MAC | VIRTIO_NET_F_MRG_RXBUF |
                    VIRTIO_NET_F_STATUS | VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_CTRL_RX |
                    VIRTIO_NET_F_CTRL_RX_EXTRA | VIRTIO_NET_F_CTRL_MAC_ADDR;
    if (backend.gives_verified_frames())
        features |= kOffloads | VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
    if (backend.takes_long_segments())
        features |= VIRTIO_NET_F_HOST_TSO4;
    if (options.mtu != VirtioNet::kEthernetMtu)
        features |= VIRTIO_NET_F_MTU;
    return features;
}

/// The addresses of one of the two tables of VIRTIO_NET_CTRL_MAC_TABLE_SET, which are cut off
/// `from`; false when it is too short for what it says.
bool take_table(std::span<const std::byte>& from, std::vector<std::uint8_t>& to, bool& overflows) {
    if (from.size() < sizeof(std::uint32_t))
        return false;
    const std::uint64_t count = base::load_le<std::uint32_t>(from.data());
    from = from.subspan(sizeof(std::uint32_t));
    if (count * kMacBytes > from.size())
        return false;
    const auto table = from.first(count * kMacBytes);
    from = from.subspan(table.size());
    overflows = count > ReceiveFilter::kMaxTable;
    to.clear();
    for (std::size_t i = 0; i < table.size() && !overflows; ++i)
        to.push_back(std::to_integer<std::uint8_t>(table[i]));
    return true;
}

bool set_tables(ReceiveFilter& filter, std::span<const std::byte> tables) {
    auto next = filter;
    if (!take_table(tables, next.unicast, next.unicast_overflows) ||
        !take_table(tables, next.multicast, next.multicast_overflows))
        return false;
    filter = std::move(next);
    return true;
}

} // namespace

struct VirtioNet::Header {
    std::uint8_t flags = 0;
    std::uint8_t gso_type = VIRTIO_NET_HDR_GSO_NONE;
    std::uint16_t header_bytes = 0;
    std::uint16_t gso_bytes = 0;
    std::uint16_t checksum_start = 0;
    std::uint16_t checksum_offset = 0;
    std::uint16_t buffers = 0;
};

VirtioNet::VirtioNet(net::Backend& backend, const Options& options, memory::GuestMemory& memory,
                     base::EventLoop& worker)
    : StatefulVirtioDevice{{.name = "virtio-net",
                            .id = 1,
                            .class_code = 0x02'00'00,
                            .features = features_of(backend, options),
                            .queue_sizes = {kQueueSize, kQueueSize, kControlQueueSize}},
                           memory,
                           worker},
      backend_{backend}, options_{options} {
    static_assert(sizeof(Header) == 12);
    state_.filter.mac = options.mac;
    backend_.set_receiver(this);
}

VirtioNet::~VirtioNet() { backend_.set_receiver(nullptr); }

void VirtioNet::config_bytes(std::vector<std::byte>& out) const {
    out.resize(kConfigBytes);
    std::ranges::copy(std::as_bytes(std::span{state_.filter.mac}), out.begin());
    base::store_le(out.data() + kConfigStatus, VIRTIO_NET_S_LINK_UP);
    base::store_le(out.data() + kConfigPairs, std::uint16_t{1});
    base::store_le(out.data() + kConfigMtu, options_.mtu);
}

void VirtioNet::reset_own() {
    state_ = {};
    state_.filter.mac = options_.mac;
    merges_.store(false, std::memory_order_relaxed);
}

VirtioDevice::Serve VirtioNet::serve_queue(unsigned index) {
    switch (index) {
    case kReceive: backend_.receiver_ready(); return Serve::Waits; // until a frame finds no room
    case kControl:
        return serve_chains(index, [this](const DescriptorChain& chain) { return control(chain); });
    default:
        return serve_chains(index, [this](const DescriptorChain& chain) {
            send(chain);
            return 0u;
        });
    }
}

// --- from the driver --------------------------------------------------------------------------

/// What cannot be a frame is dropped, as on a cable.
void VirtioNet::send(const DescriptorChain& chain) {
    Header header;
    const auto total = total_bytes(chain.readable());
    if (total < sizeof header + kEthernetBytes ||
        total > sizeof header + net::Backend::kMaxFrameBytes)
        return;
    read_ranges(memory(), chain.readable(), 0, std::as_writable_bytes(std::span{&header, 1}));
    frame_.resize(total - sizeof header);
    read_ranges(memory(), chain.readable(), sizeof header, frame_);
    if (prepare(header, frame_))
        backend_.send(frame_);
}

/// Does what the driver left to us (§5.1.6.2); false when it may not leave it.
bool VirtioNet::prepare(const Header& header, std::span<std::byte> frame) const {
    const bool needs_checksum = (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0;
    if (header.gso_type != VIRTIO_NET_HDR_GSO_NONE &&
        (header.gso_type != VIRTIO_NET_HDR_GSO_TCPV4 || !has_feature(VIRTIO_NET_F_HOST_TSO4) ||
         !needs_checksum))
        return false;
    if (!needs_checksum)
        return true;
    const std::size_t start = header.checksum_start;
    const std::size_t place = start + header.checksum_offset;
    if (!has_feature(VIRTIO_NET_F_CSUM) || place + sizeof(std::uint16_t) > frame.size())
        return false;
    const auto sum = net::internet_checksum(frame.subspan(start));
    base::store_be(frame.data() + place, sum == 0 ? std::uint16_t{0xffff} : sum); // RFC 768
    return true;
}

/// One command and, in the last byte, how it went (§5.1.6.5).
std::uint32_t VirtioNet::control(const DescriptorChain& chain) {
    const auto total = total_bytes(chain.readable());
    if (total_bytes(chain.writable()) == 0) {
        driver_failed("a network command without room for the answer");
        return 0;
    }
    std::vector<std::byte> command(std::min<std::uint64_t>(total, kMaxCommandBytes));
    read_ranges(memory(), chain.readable(), 0, command);
    const bool obeyed = total == command.size() && obey(command);
    const auto answer = obeyed ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
    write_ranges(memory(), chain.writable(), 0, std::as_bytes(std::span{&answer, 1}));
    return sizeof answer;
}

bool VirtioNet::obey(std::span<const std::byte> command) {
    if (command.size() < 3)
        return false;
    const auto kind = std::to_integer<std::uint8_t>(command[0]);
    const auto number = std::to_integer<std::uint8_t>(command[1]);
    const auto data = command.subspan(2);
    auto& filter = state_.filter;
    const auto modes =
        has_feature(VIRTIO_NET_F_CTRL_RX_EXTRA) ? ReceiveFilter::kModes : kBasicModes;
    if (kind == VIRTIO_NET_CTRL_RX && has_feature(VIRTIO_NET_F_CTRL_RX) && number < modes &&
        data.size() == 1) {
        filter.set(number, data[0] != std::byte{0});
        return true;
    }
    if (kind == VIRTIO_NET_CTRL_GUEST_OFFLOADS)
        return number == VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET && set_offloads(data);
    return kind == VIRTIO_NET_CTRL_MAC && obey_mac(number, data);
}

bool VirtioNet::obey_mac(std::uint8_t number, std::span<const std::byte> data) {
    auto& filter = state_.filter;
    if (number == VIRTIO_NET_CTRL_MAC_TABLE_SET && has_feature(VIRTIO_NET_F_CTRL_RX))
        return set_tables(filter, data);
    if (number != VIRTIO_NET_CTRL_MAC_ADDR_SET || !has_feature(VIRTIO_NET_F_CTRL_MAC_ADDR) ||
        data.size() != kMacBytes)
        return false;
    std::ranges::copy(data, std::as_writable_bytes(std::span{filter.mac}).begin());
    return true;
}

bool VirtioNet::set_offloads(std::span<const std::byte> data) {
    if (!has_feature(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) || data.size() != sizeof(std::uint64_t))
        return false;
    const auto wanted = base::load_le<std::uint64_t>(data.data());
    for (const auto offload : {VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4})
        if ((wanted & offload) != 0 && !has_feature(offload))
            return false;
    if ((wanted & ~kOffloads) != 0)
        return false;
    state_.refused_offloads = kOffloads & ~wanted;
    offloads_changed();
    return true;
}

void VirtioNet::driver_ready(std::uint64_t) { offloads_changed(); }

void VirtioNet::offloads_changed() {
    merges_.store(has_offload(VIRTIO_NET_F_GUEST_TSO4) && has_offload(VIRTIO_NET_F_GUEST_CSUM),
                  std::memory_order_relaxed);
}

// --- to the driver ----------------------------------------------------------------------------

std::size_t VirtioNet::receive(std::span<const net::Arrival> frames) noexcept {
    std::size_t taken = 0;
    const bool served = with_queues([&] {
        while (taken < frames.size() && deliver(frames[taken]) == Delivery::Taken)
            ++taken;
    });
    if (served)
        return taken;
    const base::MutexLock lock{lock_};
    return is_paused_ ? 0 : frames.size(); // nobody is there to get them
}

/// Into one buffer, or several where the driver merges them (§5.1.6.3.2, §5.1.6.4).
VirtioNet::Delivery VirtioNet::deliver(const net::Arrival& arrival) {
    if (!takes(arrival))
        return Delivery::Taken;
    auto& queue = virtqueue(kReceive);
    const auto wanted = sizeof(Header) + arrival.frame.size();
    const std::size_t limit = has_feature(VIRTIO_NET_F_MRG_RXBUF) ? queue.state().size : 1;
    std::uint64_t room = 0;
    std::uint16_t count = 0;
    while (room < wanted && count < limit) {
        if (count == chains_.size())
            chains_.emplace_back();
        // The driver's next buffer rings; those that we have by now would not.
        if (!queue.pop(chains_[count]) &&
            !(queue.enable_notifications() && queue.pop(chains_[count]))) {
            queue.unpop(count);
            return Delivery::NoRoom;
        }
        room += total_bytes(chains_[count++].writable());
    }
    if (room < wanted)
        queue.unpop(count); // it would never fit: lost
    else
        write(count, arrival);
    return Delivery::Taken;
}

/// Merged segments may have come for a driver that takes none any more: TCP repeats them.
bool VirtioNet::takes(const net::Arrival& arrival) const {
    return state_.filter.lets_in(arrival.frame) &&
           (arrival.segment_bytes == 0 || takes_merged_segments());
}

/// §5.1.6.4.1
VirtioNet::Header VirtioNet::header_of(const net::Arrival& arrival) const {
    Header header;
    if (arrival.segment_bytes != 0) {
        header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        header.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
        header.header_bytes = net::TcpSegment::kHeaderBytes;
        header.gso_bytes = arrival.segment_bytes;
        header.checksum_start = net::TcpSegment::kTcpStart;
        header.checksum_offset = net::TcpSegment::kChecksumOffset;
    } else if (has_offload(VIRTIO_NET_F_GUEST_CSUM)) {
        header.flags = VIRTIO_NET_HDR_F_DATA_VALID;
    }
    return header;
}

void VirtioNet::write(std::size_t chains, const net::Arrival& arrival) {
    auto header = header_of(arrival);
    auto frame = arrival.frame;
    header.buffers = static_cast<std::uint16_t>(chains);
    auto head = std::as_bytes(std::span{&header, 1});
    for (const auto& chain : std::span{chains_}.first(chains)) {
        const auto first = write_ranges(memory(), chain.writable(), 0, head);
        const auto room = total_bytes(chain.writable()) - first;
        const auto rest = frame.first(std::min<std::uint64_t>(frame.size(), room));
        write_ranges(memory(), chain.writable(), first, rest);
        head = head.subspan(first);
        frame = frame.subspan(rest.size());
        virtqueue(kReceive).push(chain.head, static_cast<std::uint32_t>(first + rest.size()));
    }
}

} // namespace doppel::devices
