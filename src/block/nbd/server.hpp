// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Exports images over NBD: fixed newstyle, structured replies, metadata contexts, any number of
/// connections. Owner thread only.
#include <chrono>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "block/image_node.hpp"
#include "block/nbd/protocol.hpp"
#include "block/nbd/stream.hpp"
#include "block/nbd/tls.hpp"

namespace doppel::block::nbd {

/// What a metadata context tells about a range.
struct Context {
    enum class Kind : std::uint8_t { Allocation, Depth, Bitmap };
    std::uint32_t id = 0;
    std::string name;
    Kind kind = Kind::Allocation;
    std::string bitmap;
};

struct Export {
    std::string name; // empty: the one that clients get who ask for none
    std::string description;
    ImageNode* node = nullptr; // outlives the server
    bool read_only = false;
    bool allocation_depth = false;    // offers qemu:allocation-depth
    std::vector<std::string> bitmaps; // offered as qemu:dirty-bitmap:NAME; they exist

    std::vector<Context> contexts() const;
    std::uint16_t flags() const;
};

struct ServerOptions {
    unsigned max_clients = 0; // at once; 0: any number
    /// Until a client must have chosen an export; 0: for ever.
    std::chrono::seconds handshake_limit{10};
    TlsCredentials* tls = nullptr;                // clients must use it; outlives the server
    std::function<void(const std::string&)> warn; // what clients do wrong, and failed requests
};

class Session;

class Server {
public:
    Server(IoContext& context, std::vector<Export> exports, ServerOptions options);
    ~Server();
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;

    /// Accepts clients of a socket that listens.
    Result<void> listen(base::UniqueFd socket);
    /// A client that is connected already.
    Result<void> serve(base::UniqueFd socket, std::string peer);
    /// Clients that are connected, and how many there have been.
    std::size_t clients() const noexcept { return sessions_.size(); }
    std::uint64_t served() const noexcept { return served_; }
    /// Ends all connections; requests under way are carried out.
    Task<void> stop();

    const std::vector<Export>& exports() const noexcept { return exports_; }
    const ServerOptions& options() const noexcept { return options_; }
    IoContext& context() noexcept { return context_; }

private:
    void accept_clients();
    void watch();
    void forget(Session* session);

    IoContext& context_;
    std::vector<Export> exports_;
    ServerOptions options_;
    base::UniqueFd listener_;
    bool watching_ = false;
    bool stopping_ = false;
    std::list<std::unique_ptr<Session>> sessions_;
    std::uint64_t served_ = 0;
    std::coroutine_handle<> stopped_;
};

} // namespace doppel::block::nbd
