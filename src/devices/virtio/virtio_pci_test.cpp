// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <sys/eventfd.h>

#include <map>

#include "devices/virtio/test_driver.hpp"
#include "devices/virtio/virtio_rng.hpp"

using namespace doppel;
using namespace doppel::devices;
using namespace doppel::devices::test;

namespace {

/// Answers each chain with its readable bytes in capitals.
class Shouter final : public StatefulVirtioDevice<Shouter> {
public:
    struct State {
        std::uint32_t heard = 0;
    };
    static constexpr auto kSchema =
        state::schema("test-shouter", 1, state::field(1, "heard", &State::heard));
    explicit Shouter(VirtioMachine& m)
        : StatefulVirtioDevice{{.name = "shouter",
                                .id = 42,
                                .class_code = 0xff'00'00,
                                .features = 1u << 3,
                                .queue_sizes = {256, 8}},
                               *m.memory,
                               *m.worker} {}
    std::uint32_t heard() const { return state_.heard; }
    void change_config() {
        with_queues([this] { config_changed(); });
    }
    bool is_slow = false; // keeps chains until answer_late()
    void answer_late() {
        with_queues([] {});
        const base::MutexLock lock{lock_};
        for (const auto head : kept_)
            virtqueue(0).push(head, 0);
        kept_.clear();
    }

private:
    friend StatefulVirtioDevice<Shouter>;
    Serve serve_queue(unsigned index) override {
        if (is_slow) {
            DescriptorChain chain;
            while (virtqueue(index).pop(chain))
                kept_.push_back(chain.head);
            return Serve::WantsMore;
        }
        return serve_chains(index, [this](const DescriptorChain& chain) {
            std::string text(total_bytes(chain.readable()), ' ');
            read_ranges(memory(), chain.readable(), 0, std::as_writable_bytes(std::span{text}));
            for (auto& c : text)
                c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
            ++state_.heard;
            return static_cast<std::uint32_t>(
                write_ranges(memory(), chain.writable(), 0, std::as_bytes(std::span{text})));
        });
    }
    void config_bytes(std::vector<std::byte>& out) const override {
        out.assign({std::byte{0x11}, std::byte{0x22}, std::byte{0x33}, std::byte{0x44}});
    }
    std::vector<std::uint16_t> kept_;
    State state_;
};

struct Rig {
    VirtioMachine machine;
    Shouter* shouter = nullptr;
    TestDriver driver{machine, make()};
    std::unique_ptr<VirtioDevice> make() {
        auto device = std::make_unique<Shouter>(machine);
        shouter = device.get();
        return device;
    }
    bool needs_reset() { return (driver.status() & VIRTIO_STATUS_NEEDS_RESET) != 0; }
};

constexpr std::uint64_t kIn = 0x2000, kOut = 0x3000;

std::uint64_t descriptors_of(TestDriver& d) { return d.queue(0).descriptors(); }

/// What no driver may do, by name.
std::map<std::string, std::function<void()>> crimes_of(TestDriver& d) {
    return {
        {"a loop",
         [&d] {
             d.put_descriptor(descriptors_of(d), {kIn, 1}, true, 1);
             d.put_descriptor(descriptors_of(d) + 16, {kIn, 1}, true, 0);
             d.make_available(0, 0);
         }},
        {"a head that does not exist", [&d] { d.make_available(0, 999); }},
        {"a next that does not exist",
         [&d] {
             d.put_descriptor(descriptors_of(d), {kIn, 1}, true, 77);
             d.make_available(0, 0);
         }},
        {"a buffer outside of RAM", [&d] { d.add(0, {{VirtioMachine::kRamBytes - 2, 4}}); }},
        {"a buffer around the end of the world", [&d] { d.add(0, {{~0ull - 1, 4}}); }},
        {"readable behind writable", [&d] { d.add(0, {{kOut, 1, true}, {kIn, 1}}); }},
        {"an index that has overtaken",
         [&d] { d.put(d.queue(0).available() + 2, std::uint16_t{17}); }},
        {"more than 4 GiB",
         [&d] {
             std::vector<TestDriver::Part> parts(4, {0, 0x7fff'ffff});
             d.add(0, parts);
         }},
        {"an indirect table within another",
         [&d] {
             d.put_descriptor(0x8000, {0x8000, 16}, false, 0, 4);
             d.put_descriptor(descriptors_of(d), {0x8000, 16}, false, 0, 4);
             d.make_available(0, 0);
         }},
        {"an indirect table that goes on",
         [&d] {
             d.put_descriptor(0x8000, {kIn, 1}, false, 0);
             d.put_descriptor(descriptors_of(d), {0x8000, 16}, true, 1, 4);
             d.make_available(0, 0);
         }},
        {"an indirect table of no size",
         [&d] {
             d.put_descriptor(descriptors_of(d), {0x8000, 0}, false, 0, 4);
             d.make_available(0, 0);
         }},
        {"an indirect table of half an entry",
         [&d] {
             d.put_descriptor(descriptors_of(d), {0x8000, 24}, false, 0, 4);
             d.make_available(0, 0);
         }},
        {"an indirect table outside of RAM",
         [&d] {
             d.put_descriptor(descriptors_of(d), {VirtioMachine::kRamBytes, 16}, false, 0, 4);
             d.make_available(0, 0);
         }},
    };
}

} // namespace

TEST_CASE("a chain goes there and back, with one interrupt") {
    Rig rig;
    rig.driver.start();
    rig.driver.put_text(kIn, "hello");
    rig.driver.add_and_run(0, {{kIn, 5}, {kOut, 3, true}, {kOut + 0x100, 10, true}});
    const auto used = rig.driver.take_used(0);
    REQUIRE(used.size() == 1);
    CHECK(used[0].head == 0);
    CHECK(used[0].written == 5);
    CHECK(rig.driver.text(kOut, 3) == "HEL");
    CHECK(rig.driver.text(kOut + 0x100, 2) == "LO");
    CHECK(rig.driver.take_interrupts(0) == 1);
    CHECK(rig.driver.take_interrupts(1) == 0);
}

TEST_CASE("a doorbell that rings without a write to the register is a notification") {
    struct Host final : bus::DoorbellHost {
        std::map<std::uint64_t, int> hung;
        void hang(std::uint64_t address, int eventfd) noexcept override { hung[address] = eventfd; }
        void take_down(std::uint64_t address, int) noexcept override { hung.erase(address); }
    } host;
    Rig rig;
    auto& pci = rig.driver.machine().pci;
    pci.write({}, pci::kCommand, 0, 2);
    REQUIRE(rig.driver.function().use_doorbells());
    pci.mmio.set_doorbell_host(&host);
    CHECK(host.hung.empty());
    pci.write({}, pci::kCommand, pci::kCommandMemory | pci::kCommandBusMaster, 2);
    REQUIRE(host.hung.size() == rig.driver.function().device().queue_count());
    rig.driver.start();
    rig.driver.put_text(kIn, "hello");
    rig.driver.add(0, {{kIn, 5}, {kOut, 5, true}});
    rig.driver.run();
    CHECK(rig.driver.take_used(0).empty());
    REQUIRE(eventfd_write(host.hung.at(TestDriver::kBar + VirtioPci::kNotify), 3) == 0);
    rig.driver.run();
    CHECK(rig.driver.take_used(0).size() == 1);
    CHECK(rig.driver.text(kOut, 5) == "HELLO");
    pci.mmio.set_doorbell_host(nullptr);
}

TEST_CASE("indirect descriptors, on their own and at the end of a chain") {
    Rig rig;
    rig.driver.start(VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC);
    rig.driver.put_text(kIn, "abcd");
    rig.driver.put_descriptor(0x8000, {kIn, 4}, true, 2);
    rig.driver.put_descriptor(0x8020, {kOut, 4, true}, false, 0);
    auto& q = rig.driver.queue(0);
    rig.driver.put_descriptor(q.descriptors(), {0x8000, 48}, false, 0, 4);
    rig.driver.make_available(0, 0);
    rig.driver.put_descriptor(q.descriptors() + 16, {kIn, 2}, true, 2);
    rig.driver.put_descriptor(q.descriptors() + 32, {0x8000, 48}, false, 0, 4);
    rig.driver.make_available(0, 1);
    rig.driver.notify(0);
    rig.driver.run();
    const auto used = rig.driver.take_used(0);
    REQUIRE(used.size() == 2);
    CHECK(used[0].written == 4);
    CHECK(used[1].head == 1);
    CHECK(rig.driver.text(kOut, 4) == "ABAB");
    CHECK(!rig.needs_reset());
}

TEST_CASE("many chains, more than the ring holds, come back in order") {
    Rig rig;
    rig.driver.start(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX, 8);
    for (std::uint32_t i = 0; i < 70'000; ++i) { // indices wrap
        rig.driver.add_and_run(0, {{kIn, 1}, {kOut, 1, true}});
        const auto used = rig.driver.take_used(0);
        REQUIRE(used.size() == 1);
        REQUIRE(used[0].head == i * 2 % 8);
        REQUIRE(rig.driver.take_interrupts(0) == 1);
    }
}

TEST_CASE("event index: no interrupt before the driver's mark, none twice") {
    Rig rig;
    rig.driver.start(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
    auto& q = rig.driver.queue(0);
    rig.driver.put(q.available() + 4 + q.size * 2u, std::uint16_t{2}); // after the third
    rig.driver.add_and_run(0, {{kIn, 1}});
    rig.driver.take_interrupts(0); // the first is free: nobody knows the mark yet
    rig.driver.add_and_run(0, {{kIn, 1}});
    CHECK(rig.driver.take_interrupts(0) == 0);
    rig.driver.add_and_run(0, {{kIn, 1}});
    CHECK(rig.driver.take_interrupts(0) == 1);
    rig.driver.add_and_run(0, {{kIn, 1}});
    CHECK(rig.driver.take_interrupts(0) == 0);
    // and the device says from where on it wants to be notified
    CHECK(rig.driver.memory().load<std::uint16_t>({q.used() + 4 + q.size * 8u}) == 4);
}

TEST_CASE("without event index the driver's flag suppresses interrupts") {
    Rig rig;
    rig.driver.start();
    rig.driver.put(rig.driver.queue(0).available(), std::uint16_t{1});
    rig.driver.add_and_run(0, {{kIn, 1}});
    CHECK(rig.driver.take_used(0).size() == 1);
    CHECK(rig.driver.take_interrupts(0) == 0);
}

TEST_CASE("INTx: the wire rises with the status register and falls when that is read") {
    Rig rig;
    rig.driver.start(VIRTIO_F_VERSION_1, 16, TestDriver::Interrupts::Intx);
    rig.driver.add_and_run(0, {{kIn, 1}});
    CHECK(rig.machine.pci.irqs.level(16));
    CHECK(rig.driver.read(VirtioPci::kIsr, 1) == 1);
    CHECK(!rig.machine.pci.irqs.level(16));
    rig.shouter->change_config();
    CHECK(rig.driver.read(VirtioPci::kIsr, 1) == 2);
    CHECK(rig.driver.read(VirtioPci::kIsr, 1) == 0);
}

TEST_CASE("a configuration change: its vector, the next generation") {
    Rig rig;
    rig.driver.start();
    const auto before = rig.driver.read(0x15, 1);
    rig.shouter->change_config();
    CHECK(rig.driver.read(0x15, 1) == before + 1);
    CHECK(rig.driver.take_interrupts(2) == 1);
    CHECK(rig.driver.config(0, 4) == 0x44332211);
}

TEST_CASE("features: what is not offered, or no VERSION_1, is not agreed to") {
    Rig rig;
    CHECK((rig.driver.offered() & (1u << 3)) != 0);
    CHECK(rig.driver.negotiate(VIRTIO_F_VERSION_1 | 1u << 3));
    CHECK(!rig.driver.negotiate(VIRTIO_F_VERSION_1 | 1u << 4));
    CHECK(!rig.driver.negotiate(1u << 3));
    rig.driver.set_status(rig.driver.status() | VIRTIO_STATUS_DRIVER_OK);
    CHECK(rig.needs_reset());
    rig.driver.set_status(0);
    CHECK(rig.driver.status() == 0);
}

TEST_CASE("a driver that breaks the rules gets DEVICE_NEEDS_RESET, and after a reset all works") {
    Rig rig;
    auto& d = rig.driver;
    for (const auto& [name, commit] : crimes_of(d)) {
        CAPTURE(name);
        d.start();
        commit();
        d.notify(0);
        d.run();
        CHECK(rig.needs_reset());
        CHECK(d.take_interrupts(2) == 1); // told by a configuration interrupt
        CHECK(d.take_used(0).empty());
        d.start();
        d.add_and_run(0, {{kIn, 1}, {kOut, 1, true}});
        CHECK(d.take_used(0).size() == 1);
        CHECK(!rig.needs_reset());
        d.take_interrupts(0);
    }
}

TEST_CASE("a ring outside of RAM or misaligned") {
    for (const auto used :
         std::array<std::uint64_t, 3>{VirtioMachine::kRamBytes - 4, 0x5002, ~3ull}) {
        CAPTURE(used);
        Rig rig;
        REQUIRE(rig.driver.negotiate(VIRTIO_F_VERSION_1));
        rig.driver.write(0x16, 2, 0);
        rig.driver.write(0x20, 4, 0x1000);
        rig.driver.write(0x28, 4, 0x4000);
        rig.driver.write(0x30, 4, used & 0xffff'ffff);
        rig.driver.write(0x34, 4, used >> 32);
        rig.driver.write(0x1c, 2, 1);
        rig.driver.set_status(0xf);
        rig.driver.run();
        CHECK(rig.needs_reset());
    }
}

TEST_CASE(
    "queue registers: sizes that are no power of two are ignored, enabled queues keep theirs") {
    Rig rig;
    rig.driver.start();
    rig.driver.write(0x16, 2, 1);
    CHECK(rig.driver.read(0x18, 2) == 8);
    rig.driver.write(0x18, 2, 4);
    CHECK(rig.driver.read(0x18, 2) == 8);
    rig.driver.set_status(0);
    rig.driver.write(0x16, 2, 0);
    for (const unsigned size : {0u, 3u, 512u}) {
        rig.driver.write(0x18, 2, size);
        CHECK(rig.driver.read(0x18, 2) == 256);
    }
    rig.driver.write(0x16, 2, 2); // no such queue
    CHECK(rig.driver.read(0x18, 2) == 0);
    rig.driver.write(0x1a, 2, 7); // no such vector
    rig.driver.write(0x16, 2, 0);
    rig.driver.write(0x1a, 2, 7);
    CHECK(rig.driver.read(0x1a, 2) == 0xffff);
}

TEST_CASE("the structures can be reached through configuration space") {
    Rig rig;
    auto& pci = rig.machine.pci;
    std::map<unsigned, std::uint16_t> found;
    for (auto at = static_cast<std::uint16_t>(pci.read({}, pci::kCapabilities, 1)); at != 0;
         at = static_cast<std::uint16_t>(pci.read({}, static_cast<std::uint16_t>(at + 1), 1)))
        if (pci.read({}, at, 1) == pci::kCapabilityVendor)
            found[pci.read({}, static_cast<std::uint16_t>(at + 3), 1)] = at;
    REQUIRE(found.size() == 5);
    const auto at = [&](unsigned offset) { return static_cast<std::uint16_t>(found[5] + offset); };
    const auto aim = [&](std::uint32_t offset, std::uint32_t length) {
        pci.write({}, at(8), offset);
        pci.write({}, at(12), length);
    };
    aim(0x12, 2);
    CHECK((pci.read({}, at(16)) & 0xffff) == 2); // queues
    aim(0x14, 1);
    pci.write({}, at(16), 1, 1);
    CHECK(rig.driver.status() == 1);
    aim(0x8000, 4);
    pci.write({}, at(16), 5);
    aim(0xffff'fffc, 4);
    CHECK(pci.read({}, at(16)) == 5); // nothing there: the register itself
}

TEST_CASE("reset waits for what is in flight; pause does not begin anything new") {
    Rig rig;
    rig.driver.start();
    rig.shouter->is_slow = true;
    rig.driver.add_and_run(0, {{kIn, 1}});
    CHECK(rig.driver.take_used(0).empty());
    rig.shouter->answer_late();
    rig.driver.function().pause();
    rig.shouter->is_slow = false;
    rig.driver.add_and_run(0, {{kIn, 1}});
    CHECK(rig.shouter->heard() == 0);
    rig.driver.function().resume();
    rig.driver.run();
    CHECK(rig.shouter->heard() == 1);
    CHECK(rig.driver.take_used(0).size() == 2);
}

TEST_CASE("without bus mastering the device leaves memory alone, and works once it may") {
    Rig rig;
    rig.driver.start();
    rig.machine.pci.write({}, pci::kCommand, pci::kCommandMemory, 2);
    rig.driver.add_and_run(0, {{kIn, 1}});
    CHECK(rig.driver.take_used(0).empty());
    rig.machine.pci.write({}, pci::kCommand, pci::kCommandMemory | pci::kCommandBusMaster, 2);
    rig.driver.run();
    CHECK(rig.driver.take_used(0).size() == 1);
}

TEST_CASE("saved with work waiting, loaded elsewhere: the work goes on") {
    VirtioMachine machine;
    state::Encoder saved;
    {
        TestDriver driver{machine, std::make_unique<Shouter>(machine)};
        driver.start(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
        driver.add_and_run(0, {{kIn, 1}, {kOut, 1, true}});
        driver.function().pause();
        driver.put_text(kIn, "z");
        driver.add(0, {{kIn, 1}, {kOut, 1, true}});
        driver.function().save(saved);
    }
    TestDriver other{machine, std::make_unique<Shouter>(machine)};
    state::Decoder decoder{saved.bytes()};
    other.function().pause();
    REQUIRE(other.function().load(decoder));
    other.function().resume();
    other.run();
    CHECK(other.text(kOut, 1) == "Z");
    CHECK(static_cast<Shouter&>(other.function().device()).heard() == 2);
}

TEST_CASE("virtio-rng fills buffers with bytes that differ") {
    VirtioMachine machine;
    TestDriver driver{machine, std::make_unique<VirtioRng>(*machine.memory, *machine.worker)};
    CHECK(machine.pci.read({}, pci::kVendorId) == 0x1044'1af4);
    driver.start();
    driver.add_and_run(0, {{kOut, 300, true}, {kOut + 0x400, 300, true}});
    const auto used = driver.take_used(0);
    REQUIRE(used.size() == 1);
    CHECK(used[0].written == 600);
    CHECK(driver.text(kOut, 300) != std::string(300, '\0'));
    CHECK(driver.text(kOut, 300) != driver.text(kOut + 0x400, 300));
    driver.add_and_run(0, {{kOut, 300}}); // nothing to write to
    CHECK(driver.take_used(0)[0].written == 0);
}
