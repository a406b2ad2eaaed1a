// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Byte streams between a device (serial port, debug console) and the host (terminal, file,
/// socket). The device writes to a ByteSink; a ByteSource hands bytes to the device, which is its
/// ByteReceiver and says how many it has room for.
#include <chrono>
#include <cstddef>
#include <span>

namespace doppel::chardev {

/// Host side, output. Any thread; called on vCPU threads without a lock of the device held.
class ByteSink {
public:
    virtual ~ByteSink() = default;
    /// Takes all bytes; buffers or drops rather than block for long. Order of calls is kept.
    virtual void write(std::span<const std::byte> bytes) noexcept = 0;
};

/// Device side, input. Any thread.
class ByteReceiver {
public:
    virtual ~ByteReceiver() = default;
    /// How many bytes receive() takes right now without loss.
    virtual std::size_t can_receive() const noexcept = 0;
    /// Bytes beyond can_receive() overrun, as on a real line.
    virtual void receive(std::span<const std::byte> bytes) noexcept = 0;
};

/// Host side, input: pushes to its receiver while that has room. Any thread.
class ByteSource {
public:
    virtual ~ByteSource() = default;
    /// Set once before the VM runs; nullptr before the device dies. The receiver outlives that.
    virtual void set_receiver(ByteReceiver* receiver) noexcept = 0;
    /// The receiver, which had no room, has some again. Called without a lock of the device held,
    /// also from inside receive(); must not call the receiver back on this call's stack.
    virtual void receiver_ready() noexcept = 0;
};

/// A stream in both directions: what `--console stdio` stands for.
class Backend : public ByteSink, public ByteSource {
public:
    /// The VM has ended: sends what is still queued, for at most `limit`. On the thread of the
    /// event loop, which does not run.
    virtual void finish(std::chrono::milliseconds /*limit*/) {}
};

} // namespace doppel::chardev
