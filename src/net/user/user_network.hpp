// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A network that needs no rights on the host: libslirp, a TCP/IP stack in this process, ends the
/// guest's connections and opens sockets in their place. The guest finds DHCP, a name server and a
/// router to wherever this process may connect; ports of the host can lead into it.
///
/// Not modelled: ICMP beyond echo, TFTP, SMB, IPv6 forwards. Open connections are part of no saved
/// state: after a restore they are reset.
#include <memory>

#include "base/event_loop.hpp"
#include "base/result.hpp"
#include "net/backend.hpp"
#include "net/user/options.hpp"

namespace doppel::net {

/// The loop's thread only, once it runs.
class UserNetwork final : public Backend {
public:
    /// The loop outlives this. Errors: of the forwards, InvalidArgument or Busy.
    static base::Result<std::unique_ptr<UserNetwork>> create(base::EventLoop& loop,
                                                             const UserOptions& options);
    ~UserNetwork() override;

    void set_receiver(FrameReceiver* receiver) noexcept override;
    void receiver_ready() noexcept override;
    void send(Frame frame) noexcept override;
    bool takes_long_segments() const noexcept override { return true; }
    bool gives_verified_frames() const noexcept override { return true; }

private:
    struct Impl;
    explicit UserNetwork(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

} // namespace doppel::net
