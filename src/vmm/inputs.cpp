// SPDX-License-Identifier: Apache-2.0
#include "vmm/inputs.hpp"

#include <algorithm>

#include "base/log.hpp"
#include "machine/host_tsc.hpp"

namespace doppel::vmm {

namespace {

class RealInputs final : public Inputs {
public:
    explicit RealInputs(chardev::Backend& console) : console_{console} {}

    base::TimerQueue& timers() override { return time_; }
    const base::WallClock& calendar() const override { return calendar_; }
    const cpu::x86::TscSource& tsc() const override { return tsc_; }
    cpu::x86::EntropySource* entropy() override { return nullptr; }
    cpu::InstructionMeter* meter() override { return nullptr; }
    chardev::Backend& console() override { return console_; }
    void pause() override {
        time_.pause();
        tsc_.pause();
    }
    void resume() override {
        tsc_.resume();
        time_.resume();
    }
    void reset() override { tsc_.reset(); }
    void set_clocks(std::uint64_t vm_time_ns, std::uint64_t tsc, std::uint64_t tsc_hz) override {
        pause();
        time_.set_now(vm_time_ns);
        tsc_.set(tsc, tsc_hz);
    }

private:
    base::RealTime time_;
    base::HostWallClock calendar_;
    machine::HostTsc tsc_;
    chardev::Backend& console_;
};

} // namespace

std::unique_ptr<Inputs> Inputs::create(description::TimeMode mode, chardev::Backend& console) {
    if (mode == description::TimeMode::Virtual)
        return std::make_unique<VirtualInputs>(console);
    return std::make_unique<RealInputs>(console);
}

void HeldConsole::set_receiver(chardev::ByteReceiver* device) noexcept {
    {
        const std::scoped_lock lock{mutex_};
        device_ = device;
    }
    host_.set_receiver(device == nullptr ? nullptr : this);
}

std::size_t HeldConsole::can_receive() const noexcept {
    const std::scoped_lock lock{mutex_};
    return kRoom - held_.size();
}

void HeldConsole::receive(std::span<const std::byte> bytes) noexcept {
    {
        const std::scoped_lock lock{mutex_};
        const auto room = std::min(bytes.size(), kRoom - held_.size());
        held_.insert(held_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(room));
        waiting_.store(true);
    }
    if (arrived_)
        arrived_();
}

bool HeldConsole::deliver() {
    if (!waiting_.load())
        return false;
    chardev::ByteReceiver* device = nullptr;
    std::vector<std::byte> bytes;
    bool was_full = false;
    {
        const std::scoped_lock lock{mutex_};
        device = device_;
        const auto count = std::min(device == nullptr ? 0 : device->can_receive(), held_.size());
        const auto end = held_.begin() + static_cast<std::ptrdiff_t>(count);
        was_full = held_.size() == kRoom && count != 0;
        bytes.assign(held_.begin(), end);
        held_.erase(held_.begin(), end);
        waiting_.store(!held_.empty());
    }
    if (bytes.empty())
        return false;
    device->receive(bytes);
    if (was_full)
        host_.receiver_ready();
    return true;
}

} // namespace doppel::vmm
