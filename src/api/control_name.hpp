// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The names of running VMs: each is a socket NAME.sock and a lock NAME.lock in one folder of the
/// user's, $XDG_RUNTIME_DIR/doppel, or /run/user/UID/doppel, or /tmp/doppel-UID. Any thread.
///
/// Who holds the lock has the name, so a socket that a killed VM has left behind is in nobody's
/// way.
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "base/unique_fd.hpp"

namespace doppel::api {

/// Errors: PermissionDenied when the folder is not the user's alone.
base::Result<std::string> control_folder();

/// A name that is ours until this dies; then the socket and the lock are removed.
class ControlName {
public:
    /// Errors: Busy when a running VM has the name; of the host.
    static base::Result<ControlName> claim(const std::string& name);
    /// `stem`, or else stem-2, stem-3 …: the first that is free.
    static base::Result<ControlName> claim_any(const std::string& stem);
    ControlName(ControlName&&) = default;
    ControlName& operator=(ControlName&&) = delete;
    ~ControlName();

    const std::string& name() const { return name_; }
    /// The listening socket; once.
    base::UniqueFd take_listener() { return std::move(listener_); }

private:
    ControlName() = default;
    std::string name_, folder_;
    base::UniqueFd lock_, listener_;
};

/// All names that have a socket, sorted. Some may be of VMs that have just ended.
base::Result<std::vector<std::string>> control_names();
/// Errors: NotFound when no VM of that name runs.
base::Result<base::UniqueFd> connect_to(const std::string& name);

} // namespace doppel::api
