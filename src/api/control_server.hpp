// SPDX-License-Identifier: Apache-2.0
#pragma once
/// HTTP/1.1 on a listening unix socket, on a thread of its own. Knows nothing of VMs.
#include <functional>
#include <memory>
#include <string>

#include "base/result.hpp"
#include "base/unique_fd.hpp"

namespace doppel::api {

struct HttpRequest {
    std::string method, target, body;
};
struct HttpResponse {
    unsigned status = 200;
    std::string body; // JSON
};

class ControlServer {
public:
    using Reply = std::function<void(HttpResponse response)>; // any thread, at most once
    /// Called on the server's thread, which serves nobody else meanwhile: hand long work on. A
    /// connection whose Reply is never called waits until the server ends.
    using Handler = std::function<void(HttpRequest request, Reply reply)>;

    static base::Result<std::unique_ptr<ControlServer>> start(base::UniqueFd listener,
                                                              Handler handler);
    /// Ends the connections and waits for the thread; replies that come later go nowhere.
    ~ControlServer();
    ControlServer(const ControlServer&) = delete;
    ControlServer& operator=(const ControlServer&) = delete;

private:
    struct Impl;
    explicit ControlServer(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

} // namespace doppel::api
