// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Talks to one running VM. Owner thread only; calls block.
#include <memory>
#include <string>
#include <string_view>

#include "api/control.hpp"
#include "base/result.hpp"

namespace doppel::api {

class ControlClient {
public:
    /// Errors: NotFound when no VM of that name runs.
    static base::Result<ControlClient> connect(const std::string& name);
    ControlClient(ControlClient&&) noexcept;
    ~ControlClient();

    /// The body of the answer. Errors: what the VM answered; Io when the connection ended.
    base::Result<std::string> get(std::string_view target);
    base::Result<std::string> post(std::string_view target, std::string body = {});

private:
    struct Impl;
    explicit ControlClient(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

} // namespace doppel::api
