// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "devices/virtio/test_driver.hpp"
#include "devices/virtio/virtio_console.hpp"

using namespace doppel;
using namespace doppel::devices;
using namespace doppel::devices::test;

namespace {

constexpr unsigned kRx = 0, kTx = 1;
constexpr std::uint64_t kText = 0x1000, kInput = 0x2000;

struct FakeTerminal final : chardev::Backend {
    chardev::ByteReceiver* device = nullptr;
    std::string printed{};
    int writes = 0, ready = 0;

    void write(std::span<const std::byte> bytes) noexcept override {
        ++writes;
        printed.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
    void set_receiver(chardev::ByteReceiver* receiver) noexcept override { device = receiver; }
    void receiver_ready() noexcept override { ++ready; }
    void type(const std::string& text) { device->receive(std::as_bytes(std::span{text})); }
};

struct Rig {
    VirtioMachine machine;
    FakeTerminal terminal;
    TestDriver driver{machine,
                      std::make_unique<VirtioConsole>(terminal, *machine.memory, *machine.worker)};
    void offer_input(std::uint64_t gpa, std::uint32_t bytes) {
        driver.add_and_run(kRx, {{gpa, bytes, true}});
    }
};

} // namespace

TEST_CASE("virtio-console: what the driver prints arrives in order, in few writes") {
    Rig rig;
    rig.driver.start();
    rig.driver.put_text(kText, "hello, world");
    rig.driver.add(kTx, {{kText, 5}, {kText + 5, 2}});
    rig.driver.add(kTx, {{kText + 7, 5}});
    rig.driver.notify(kTx);
    rig.driver.run();
    CHECK(rig.terminal.printed == "hello, world");
    CHECK(rig.terminal.writes == 1);
    CHECK(rig.driver.take_used(kTx).size() == 2);
}

TEST_CASE("virtio-console: what is typed waits for buffers and fills them") {
    Rig rig;
    rig.driver.start(rig.driver.offered());
    rig.terminal.type("type");
    rig.terminal.type("writer");
    CHECK(rig.terminal.device->can_receive() == VirtioConsole::kInputBytes - 10);
    rig.offer_input(kInput, 6);
    auto used = rig.driver.take_used(kRx);
    REQUIRE(used.size() == 1);
    CHECK(used[0].written == 6);
    CHECK(rig.driver.text(kInput, 6) == "typewr");
    rig.offer_input(kInput, 100);
    used = rig.driver.take_used(kRx);
    REQUIRE(used.size() == 1);
    CHECK(used[0].written == 4);
    CHECK(rig.driver.take_interrupts(kRx) == 2);
    rig.offer_input(kInput, 100);
    CHECK(rig.driver.take_used(kRx).empty());
    rig.terminal.type("!"); // without a kick: the buffer is there
    used = rig.driver.take_used(kRx);
    REQUIRE(used.size() == 1);
    CHECK(rig.driver.text(kInput, 1) == "!");
}

TEST_CASE("virtio-console: the terminal is held back and hears when there is room") {
    Rig rig;
    rig.driver.start();
    rig.terminal.type(std::string(VirtioConsole::kInputBytes + 10, 'x')); // the rest is overrun
    CHECK(rig.terminal.device->can_receive() == 0);
    CHECK(rig.terminal.ready == 0);
    rig.offer_input(kInput, 1);
    CHECK(rig.terminal.ready == 1);
    CHECK(rig.terminal.device->can_receive() == 1);
    rig.offer_input(kInput, 1);
    CHECK(rig.terminal.ready == 1);
}

TEST_CASE("virtio-console: a reset forgets what was typed, and the terminal goes on") {
    Rig rig;
    rig.terminal.type(std::string(VirtioConsole::kInputBytes, 'x')); // before there is a driver
    rig.driver.start();
    CHECK(rig.terminal.ready == 1);
    CHECK(rig.terminal.device->can_receive() == VirtioConsole::kInputBytes);
}

TEST_CASE("virtio-console: emergency write, before the driver is ready too") {
    Rig rig;
    CHECK(rig.driver.config(4, 4) == 1);
    for (const char c : std::string{"oops"})
        rig.driver.write(VirtioPci::kDeviceConfig + 8, 4, static_cast<std::uint8_t>(c));
    rig.driver.write(VirtioPci::kDeviceConfig, 4, 'x');
    rig.driver.run();
    CHECK(rig.terminal.printed == "oops");
}

TEST_CASE("virtio-console: paused, it keeps what is typed") {
    Rig rig;
    rig.driver.start();
    rig.offer_input(kInput, 100);
    rig.driver.function().pause();
    rig.terminal.type("later");
    CHECK(rig.driver.take_used(kRx).empty());
    rig.driver.function().resume();
    rig.driver.run();
    CHECK(rig.driver.take_used(kRx).size() == 1);
    CHECK(rig.driver.text(kInput, 5) == "later");
}

TEST_CASE("virtio-console: buffers for the wrong direction are given back empty") {
    Rig rig;
    rig.driver.start();
    rig.terminal.type("abc");
    rig.driver.add_and_run(kRx, {{kText, 10}});
    rig.offer_input(kInput, 10);
    CHECK(rig.driver.text(kInput, 3) == "abc");
    rig.driver.add_and_run(kTx, {{kText, 10, true}});
    CHECK(rig.driver.take_used(kTx).size() == 1);
    CHECK(rig.terminal.printed.empty());
}
