// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What every chip has in common: a reset, and a state that can be saved and loaded.
///
/// A device is a pure register core. Its `struct State` *is* its storage and `kSchema` numbers the
/// fields; save() and load() follow from them and are never written by hand:
///
///     class CmosRtc final : public StatefulDevice<CmosRtc>, public bus::IoHandler {
///     public:
///         struct State { std::uint8_t index = 0; };
///         static constexpr auto kSchema = state::schema("cmos-rtc", 1, field(1, "index", …));
///     private:
///         friend StatefulDevice<CmosRtc>;
///         State state_ DOPPEL_GUARDED_BY(mutex_);
///     };
///
/// Locking: registers run on the calling vCPU's thread, timers on the timer thread, input on the
/// backend's; each takes the device's own mutex_. With it held a device may drive IrqLines, send
/// MSIs and arm timers, and nothing else: backends and board callbacks are called after it is
/// released. Nothing here runs in a constructor of a base: a fresh device is as after reset().
///
/// Wires: the level of a wire is state of its receiving end, so loading drives no line. Times in a
/// State are VM time (base::Clock), which continues across save and load.
#include <utility>

#include "base/mutex.hpp"
#include "state/schema.hpp"

namespace doppel::devices {

/// Any thread, unless a function says otherwise.
class Device : public state::Savable {
public:
    Device() = default;
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    /// Power-on or board reset: everything but battery-backed contents becomes as constructed.
    /// Control thread, VM paused. Output wires are not driven: all chips are reset together.
    virtual void reset() = 0;

    /// The device's part of the pause handshake: after pause() no worker of the device touches
    /// guest memory or device state, and its backend has nothing of it in flight. Called with the
    /// vCPUs and the clocks stopped, so a worker must not wait for either; requests that it has not
    /// begun wait for resume(). Paused devices may be saved, loaded and reset. Control thread,
    /// never twice in a row.
    virtual void pause() {}
    virtual void resume() {}

protected:
    mutable base::Mutex mutex_;
};

/// save() and load() from D::kSchema. D may hide three hooks (mutex_ is held in all but check):
///   void capture(State& copy) const       puts what lives outside state_ (atomics) into the copy
///   base::Result<void> check(const State&) const   refuses what does not fit this configuration
///   void state_loaded()                   spreads the new state_: atomics, timers
template <typename D> class StatefulDevice : public Device {
public:
    std::string_view state_kind() const final { return D::kSchema.kind; }

    void save(state::Encoder& to) const final {
        const auto& self = static_cast<const D&>(*this);
        const base::MutexLock lock{self.mutex_};
        auto copy = self.state_;
        self.capture(copy);
        state::encode(to, D::kSchema, copy);
    }

    base::Result<void> load(state::Decoder& from) final {
        auto& self = static_cast<D&>(*this);
        typename D::State fresh{};
        DOPPEL_TRY_VOID(state::decode(from, D::kSchema, fresh));
        DOPPEL_TRY_VOID(self.check(fresh));
        const base::MutexLock lock{self.mutex_};
        self.state_ = std::move(fresh);
        self.state_loaded();
        return {};
    }

protected:
    template <typename S> void capture(S&) const {}
    template <typename S> base::Result<void> check(const S&) const { return {}; }
    void state_loaded() {}
};

} // namespace doppel::devices
