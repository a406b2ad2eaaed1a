// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "devices/virtio/test_driver.hpp"
#include "devices/virtio/virtio_net.hpp"
#include "net/internet_checksum.hpp"

using namespace doppel;
using namespace doppel::devices;
using namespace doppel::devices::test;

namespace {

constexpr unsigned kRx = 0, kTx = 1, kControl = 2;
constexpr std::uint64_t kMerge = 1u << 15, kTso4 = 1u << 11, kMtu = 1u << 3, kGuestCsum = 1u << 1,
                        kTso4In = 1u << 7, kOffloads = 1u << 2;
constexpr std::uint64_t kHeader = 0x1000, kFrame = 0x1100, kAnswer = 0x1800, kBuffer = 0x2'0000;
constexpr std::uint8_t kOk = 0, kError = 1;
const std::string kMac{"\x52\x54\x00\x12\x34\x56", 6};
const std::string kOther{"\x52\x54\x00\x00\x00\x09", 6};
const std::string kBroadcast(6, '\xff');
const std::string kGroup{"\x01\x00\x5e\x00\x00\x01", 6};

struct FakeNetwork final : net::Backend {
    net::FrameReceiver* card = nullptr;
    std::vector<std::string> sent{};
    int ready = 0;
    bool is_full_service = true;

    void set_receiver(net::FrameReceiver* receiver) noexcept override { card = receiver; }
    void receiver_ready() noexcept override { ++ready; }
    void send(net::Frame frame) noexcept override {
        sent.emplace_back(reinterpret_cast<const char*>(frame.data()), frame.size());
    }
    bool takes_long_segments() const noexcept override { return is_full_service; }
    bool gives_verified_frames() const noexcept override { return is_full_service; }
    /// How many of them the card took.
    std::size_t give(const std::vector<std::string>& frames) {
        std::vector<net::Arrival> arrivals;
        for (const auto& frame : frames)
            arrivals.push_back({std::as_bytes(std::span{frame})});
        return card->receive(arrivals);
    }
};

struct Rig {
    explicit Rig(VirtioNet::Options options = {}, bool full_service = true) {
        network.is_full_service = full_service;
        options.mac = {0x52, 0x54, 0, 0x12, 0x34, 0x56};
        driver = std::make_unique<TestDriver>(
            machine,
            std::make_unique<VirtioNet>(network, options, *machine.memory, *machine.worker));
    }
    VirtioMachine machine;
    FakeNetwork network;
    std::unique_ptr<TestDriver> driver;

    void start(std::uint64_t without = 0) { driver->start(driver->offered() & ~without); }
    bool needs_reset() { return (driver->status() & VIRTIO_STATUS_NEEDS_RESET) != 0; }

    void put_header(std::uint8_t flags, std::uint8_t gso, std::uint16_t start = 0,
                    std::uint16_t offset = 0) {
        driver->put(kHeader, flags);
        driver->put(kHeader + 1, gso);
        driver->put(kHeader + 6, start);
        driver->put(kHeader + 8, offset);
    }
    void send(const std::string& frame) {
        driver->put_text(kFrame, frame);
        driver->add_and_run(kTx,
                            {{kHeader, 12}, {kFrame, static_cast<std::uint32_t>(frame.size())}});
    }
    /// The answer to a command of the control queue.
    std::uint8_t command(const std::string& bytes) {
        driver->put_text(kFrame, bytes);
        driver->put(kAnswer, std::uint8_t{0xee});
        driver->add_and_run(
            kControl, {{kFrame, static_cast<std::uint32_t>(bytes.size())}, {kAnswer, 1, true}});
        return *driver->memory().load<std::uint8_t>({kAnswer});
    }
    /// Receive buffers of `bytes` each, one behind the other from kBuffer.
    void offer_buffers(int count, std::uint32_t bytes) {
        for (int i = 0; i < count; ++i, next_buffer += bytes)
            driver->add(kRx, {{next_buffer, bytes, true}});
        driver->notify(kRx);
        driver->run();
    }
    std::uint64_t next_buffer = kBuffer;
};

std::string frame_to(const std::string& mac, std::size_t bytes = 60) {
    std::string frame = mac + kOther;
    for (auto i = frame.size(); i < bytes; ++i)
        frame.push_back(static_cast<char>('a' + i % 23));
    return frame;
}

} // namespace

TEST_CASE("virtio-net: configuration tells address, link and MTU") {
    Rig rig;
    CHECK(rig.machine.pci.read({}, pci::kVendorId) == 0x1041'1af4);
    CHECK(rig.driver->config(0, 4) == 0x1200'5452);
    CHECK(rig.driver->config(4, 2) == 0x5634);
    CHECK(rig.driver->config(6, 2) == 1);
    CHECK((rig.driver->offered() & kMtu) == 0);
    Rig large{{.mtu = 9000}};
    CHECK((large.driver->offered() & kMtu) != 0);
    CHECK(large.driver->config(10, 2) == 9000);
}

TEST_CASE("virtio-net: what the driver sends reaches the network") {
    Rig rig;
    rig.start();
    rig.put_header(0, 0);
    rig.send(frame_to(kBroadcast));
    rig.send(frame_to(kOther, 1514));
    REQUIRE(rig.network.sent.size() == 2);
    CHECK(rig.network.sent[0] == frame_to(kBroadcast));
    CHECK(rig.network.sent[1] == frame_to(kOther, 1514));
    CHECK(rig.driver->take_used(kTx).size() == 2);
}

TEST_CASE("virtio-net: checksums that the driver leaves to the card") {
    Rig rig;
    rig.start();
    auto frame = frame_to(kOther, 61);
    frame.replace(
        34, 8,
        std::string("\x00\x35\x00\x35\x00\x1b\x12\x34", 8)); // UDP, with the pseudo header's sum
    rig.put_header(1, 0, 34, 6);
    rig.send(frame);
    REQUIRE(rig.network.sent.size() == 1);
    auto got = rig.network.sent[0];
    // Right if the sum over all of it, the field included, is that of the pseudo header inverted.
    const auto covered = std::as_bytes(std::span{got}).subspan(34);
    auto without = got.substr(34);
    without.replace(6, 2, std::string(2, '\0'));
    const auto field = base::load_be<std::uint16_t>(got.data() + 40);
    std::uint32_t sum =
        static_cast<std::uint16_t>(~net::internet_checksum(std::as_bytes(std::span{without})));
    sum += 0x1234;
    sum = (sum & 0xffff) + (sum >> 16);
    CHECK(field == static_cast<std::uint16_t>(~sum));
    CHECK(covered.size() == 27);
}

TEST_CASE("virtio-net: long segments only where they are agreed on and can be") {
    Rig rig;
    rig.start();
    const auto frame = frame_to(kOther, 200);
    rig.put_header(1, 1, 34, 16);
    rig.send(frame);
    CHECK(rig.network.sent.size() == 1);
    rig.put_header(0, 1); // without a checksum to compute
    rig.send(frame);
    rig.put_header(1, 4, 34, 16); // TCP over IPv6, not offered
    rig.send(frame);
    rig.put_header(1, 0, 199, 0); // beyond the frame
    rig.send(frame);
    rig.put_header(1, 0, 0xffff, 0xffff);
    rig.send(frame);
    CHECK(rig.network.sent.size() == 1);
    Rig plain{{}, false};
    CHECK((plain.driver->offered() & (kTso4 | kGuestCsum)) == 0);
    plain.start();
    plain.put_header(1, 1, 34, 16);
    plain.send(frame);
    CHECK(plain.network.sent.empty());
}

TEST_CASE("virtio-net: what cannot be a frame is dropped") {
    Rig rig;
    rig.start();
    rig.put_header(0, 0);
    rig.driver->add_and_run(kTx, {{kHeader, 11}});
    rig.driver->add_and_run(kTx, {{kHeader, 25}});
    rig.driver->add_and_run(kTx, {{kHeader, 0x2'0000}});
    rig.driver->add_and_run(kTx, {{kHeader, 100, true}});
    CHECK(rig.network.sent.empty());
    CHECK(rig.driver->take_used(kTx).size() == 4);
    CHECK(!rig.needs_reset());
}

TEST_CASE("virtio-net: a frame arrives behind its header") {
    Rig rig;
    rig.start();
    rig.offer_buffers(2, 1526);
    CHECK(rig.network.give({frame_to(kMac), frame_to(kBroadcast, 1514)}) == 2);
    const auto used = rig.driver->take_used(kRx);
    REQUIRE(used.size() == 2);
    CHECK(used[0].written == 72);
    CHECK(used[1].written == 1526);
    CHECK(rig.driver->text(kBuffer, 12) == std::string("\x02\0\0\0\0\0\0\0\0\0\x01\0", 12));
    CHECK(rig.driver->text(kBuffer + 12, 60) == frame_to(kMac));
    CHECK(rig.driver->text(kBuffer + 1526 + 12, 1514) == frame_to(kBroadcast, 1514));
    CHECK(rig.driver->take_interrupts(kRx) == 1);
}

TEST_CASE("virtio-net: merged segments arrive as one, until the driver gives that up") {
    Rig rig;
    CHECK((rig.driver->offered() & (kTso4In | kOffloads)) == (kTso4In | kOffloads));
    rig.start();
    rig.offer_buffers(4, 1526);
    const auto frame = frame_to(kMac, 1000);
    const net::Arrival arrival{std::as_bytes(std::span{frame}), 400};
    CHECK(rig.network.card->takes_merged_segments());
    CHECK(rig.network.card->receive({&arrival, 1}) == 1);
    CHECK(rig.driver->take_used(kRx).size() == 1);
    // NEEDS_CSUM, TCPV4, 54 bytes of headers, 400 of data, checksum 16 bytes behind the 34th
    CHECK(rig.driver->text(kBuffer, 12) ==
          std::string("\x01\x01\x36\0\x90\x01\x22\0\x10\0\x01\0", 12));
    const std::string command{"\5\0", 2};
    CHECK(rig.command(command + std::string("\x02\0\0\0\0\0\0\0", 8)) == kOk);
    CHECK_FALSE(rig.network.card->takes_merged_segments());
    CHECK(rig.network.card->receive({&arrival, 1}) == 1); // lost
    CHECK(rig.driver->take_used(kRx).empty());
    CHECK(rig.command(command + std::string(8, '\0')) == kOk);
    CHECK(rig.network.give({frame_to(kMac)}) == 1);
    CHECK(rig.driver->text(kBuffer + 1526, 1) == std::string(1, '\0')); // no DATA_VALID either
    CHECK(rig.command(command + std::string("\x82\0\0\0\0\0\0\0", 8)) == kOk);
    CHECK(rig.network.card->takes_merged_segments());
    CHECK(rig.command(command + std::string("\x82\1\0\0\0\0\0\0", 8)) == kError); // TSO6
    CHECK(rig.command(command + std::string(7, '\0')) == kError);
    rig.start(kTso4In);
    CHECK_FALSE(rig.network.card->takes_merged_segments());
    CHECK(rig.command(command + std::string("\x82\0\0\0\0\0\0\0", 8)) == kError);
    Rig plain{{}, false};
    CHECK((plain.driver->offered() & (kTso4In | kOffloads)) == 0);
}

TEST_CASE("virtio-net: a frame is merged from several buffers, the header's too") {
    Rig rig;
    rig.start();
    rig.offer_buffers(16, 10);
    CHECK(rig.network.give({frame_to(kMac)}) == 1);
    const auto used = rig.driver->take_used(kRx);
    REQUIRE(used.size() == 8);
    CHECK(used[7].written == 2);
    CHECK(rig.driver->text(kBuffer, 12) == std::string("\x02\0\0\0\0\0\0\0\0\0\x08\0", 12));
    CHECK(rig.driver->text(kBuffer + 12, 60) == frame_to(kMac));
    // What 16 of them do not hold is lost; the rest comes as if it had not been there.
    rig.offer_buffers(8, 10);
    CHECK(rig.network.give({frame_to(kMac, 400), frame_to(kMac, 100)}) == 2);
    CHECK(rig.driver->take_used(kRx).size() == 12);
}

TEST_CASE("virtio-net: without merging a frame needs one buffer") {
    Rig rig;
    rig.start(kMerge);
    rig.offer_buffers(3, 100);
    CHECK(rig.network.give({frame_to(kMac, 89), frame_to(kMac, 88)}) == 2);
    const auto used = rig.driver->take_used(kRx);
    REQUIRE(used.size() == 1);
    CHECK(used[0].written == 100);
    CHECK(rig.driver->text(kBuffer + 10, 2) == std::string("\x01\0", 2)); // §5.1.6.4.1: always one
}

TEST_CASE("virtio-net: frames wait for buffers, whatever tells of them") {
    for (const auto features : {std::uint64_t{0}, VIRTIO_F_EVENT_IDX}) {
        Rig rig;
        rig.start(features);
        const int before = rig.network.ready;
        CHECK(rig.network.give({frame_to(kMac)}) == 0);
        rig.offer_buffers(2, 40); // not enough yet
        CHECK(rig.network.ready == before + 1);
        CHECK(rig.network.give({frame_to(kMac)}) == 1);
        CHECK(rig.network.give({frame_to(kMac)}) == 0);
        rig.offer_buffers(1, 40);
        CHECK(rig.network.ready == before + 2);
        CHECK(rig.network.give({frame_to(kMac)}) == 0); // one of two buffers
        rig.offer_buffers(1, 40);
        CHECK(rig.network.ready == before + 3);
        CHECK(rig.network.give({frame_to(kMac), frame_to(kMac)}) == 1);
        CHECK(rig.driver->take_used(kRx).size() == 4);
    }
}

TEST_CASE("virtio-net: nobody there, paused, running again") {
    Rig rig;
    CHECK(rig.network.give({frame_to(kMac)}) == 1); // lost
    rig.start();
    rig.offer_buffers(4, 1526);
    rig.driver->function().pause();
    CHECK(rig.network.give({frame_to(kMac)}) == 0);
    CHECK(rig.driver->take_used(kRx).empty());
    const int before = rig.network.ready;
    rig.driver->function().resume();
    rig.driver->run();
    CHECK(rig.network.ready > before);
    CHECK(rig.network.give({frame_to(kMac)}) == 1);
    CHECK(rig.driver->take_used(kRx).size() == 1);
    rig.driver->set_status(0);
    CHECK(rig.network.give({frame_to(kMac)}) == 1);
}

TEST_CASE("virtio-net: the driver chooses what comes in") {
    Rig rig;
    rig.start();
    rig.offer_buffers(16, 1526);
    const auto comes = [&](const std::string& mac) {
        CHECK(rig.network.give({frame_to(mac)}) == 1);
        return rig.driver->take_used(kRx).size() == 1;
    };
    CHECK(comes(kOther)); // promiscuous until told otherwise
    CHECK(rig.command({"\0\0\0", 3}) == kOk);
    CHECK(!comes(kOther));
    CHECK(comes(kMac));
    CHECK(comes(kBroadcast));
    CHECK(!comes(kGroup));
    CHECK(rig.command({"\0\1\1", 3}) == kOk); // all multicast
    CHECK(comes(kGroup));
    CHECK(rig.command({"\0\3\1", 3}) == kOk); // no multicast
    CHECK(!comes(kGroup));
    CHECK(rig.command({"\0\3\0", 3}) == kOk);
    CHECK(rig.command({"\0\1\0", 3}) == kOk);
    const std::string one{"\1\0\0\0", 4};
    CHECK(rig.command(std::string("\1\0", 2) + one + kOther + one + kGroup) == kOk);
    CHECK(comes(kGroup));
    CHECK(comes(kOther));
    CHECK(rig.command(std::string("\1\0", 2) + std::string(8, '\0')) == kOk);
    CHECK(!comes(kGroup));
    CHECK(rig.command({"\0\5\1", 3}) == kOk); // no broadcast
    CHECK(!comes(kBroadcast));
    CHECK(rig.command(std::string("\1\1", 2) + kOther) == kOk); // the card's own address
    CHECK(comes(kOther));
    CHECK(!comes(kMac));
    CHECK(rig.driver->config(4, 2) == 0x0900);
    rig.start(); // a reset brings all of it back
    CHECK(rig.driver->config(4, 2) == 0x5634);
}

TEST_CASE("virtio-net: a table longer than ours lets all of its kind in") {
    Rig rig;
    rig.start();
    rig.offer_buffers(4, 1526);
    REQUIRE(rig.command({"\0\0\0", 3}) == kOk);
    std::string tables{"\1\0\0\0\0\0\x41\0\0\0", 10};
    for (int i = 0; i < 65; ++i)
        tables += kOther;
    REQUIRE(rig.command(tables) == kOk);
    CHECK(rig.network.give({frame_to(kGroup)}) == 1);
    CHECK(rig.driver->take_used(kRx).size() == 1);
    CHECK(rig.network.give({frame_to(kOther)}) == 1);
    CHECK(rig.driver->take_used(kRx).empty());
}

TEST_CASE("virtio-net: commands that are none") {
    Rig rig;
    rig.start();
    for (const auto& command :
         {std::string{}, std::string(1, '\0'), std::string("\0\6\1", 3), std::string("\0\0", 2),
          std::string("\0\0\1\1", 4), std::string("\4\0\1", 3), std::string("\1\1\1\1\1", 5),
          std::string("\1\2\1\1\1", 5), std::string("\1\0\2\0\0\0\1\1\1\1\1\1", 12),
          std::string("\1\0\xff\xff\xff\xff\0\0\0\0", 10)}) {
        if (!command.empty())
            CHECK(rig.command(command) == kError);
    }
    CHECK(!rig.needs_reset());
    rig.driver->add_and_run(kControl, {{kFrame, 3}});
    CHECK(rig.needs_reset());
}

TEST_CASE("virtio-net: an endless chain of receive buffers needs a reset, and frames are dropped") {
    Rig rig;
    rig.start();
    auto& queue = rig.driver->queue(kRx);
    rig.driver->put_descriptor(queue.descriptors(), {kBuffer, 0, true}, true, 0);
    rig.driver->make_available(kRx, 0);
    rig.driver->notify(kRx);
    rig.driver->run();
    rig.network.give({frame_to(kMac)});
    CHECK(rig.needs_reset());
    CHECK(rig.network.give({frame_to(kMac)}) == 1);
}
