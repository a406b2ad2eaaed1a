// SPDX-License-Identifier: Apache-2.0
#include "api/control_server.hpp"

#include <pthread.h>

#include <chrono>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

namespace doppel::api {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::local::stream_protocol;
using base::Result;

namespace {

constexpr std::uint64_t kMaxBodyBytes = 64u << 10;
constexpr std::uint32_t kMaxHeaderBytes = 8u << 10;
constexpr std::size_t kMaxConnections = 64;
constexpr std::chrono::seconds kPatience{30}; // with a client that is slow to ask or to listen

using Stream = beast::basic_stream<stream_protocol, asio::any_io_executor>;

class Connection;

/// What the connections share: the server's, and its thread's alone.
struct Shared {
    /// The way of a reply, which may outlive the server, to it.
    struct Gate {
        std::mutex mutex;
        Shared* server; // guarded by mutex; null when it is gone
    };

    explicit Shared(ControlServer::Handler on_request) : handler{std::move(on_request)} {}
    ~Shared() { close(); }
    Shared(const Shared&) = delete;
    Shared& operator=(const Shared&) = delete;

    void close() {
        const std::scoped_lock lock{gate->mutex};
        gate->server = nullptr;
    }
    /// `connection` waits here for the reply.
    ControlServer::Reply reply_for(std::shared_ptr<Connection> connection);

    ControlServer::Handler handler;
    std::shared_ptr<Gate> gate{new Gate{{}, this}}; // co-owned by the replies
    std::size_t connections = 0;
    std::uint64_t next_ticket = 0;
    asio::io_context context{1};
    // As in reply_for(). Goes before the context, in which its sockets live.
    std::map<std::uint64_t, std::shared_ptr<Connection>> waiting;
};

/// Owned by the operation that is under way: a read, a write, or the wait for a reply.
class Connection : public std::enable_shared_from_this<Connection> {
public:
    Connection(stream_protocol::socket socket, Shared& server)
        : stream_{std::move(socket)}, server_{server} {
        ++server_.connections;
    }
    ~Connection() { --server_.connections; }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    void read() {
        parser_.emplace();
        parser_->body_limit(kMaxBodyBytes);
        parser_->header_limit(kMaxHeaderBytes);
        stream_.expires_after(kPatience);
        http::async_read(stream_, buffer_, *parser_,
                         [self = shared_from_this()](beast::error_code error, std::size_t) {
                             self->on_read(error);
                         });
    }

    void answer(const HttpResponse& response) { write(response, parser_.value().keep_alive()); }

private:
    void on_read(beast::error_code error) {
        if (error == http::error::body_limit)
            return write({413, ""}, false);
        if (error)
            return;              // closed, timed out, or no HTTP: nobody to answer to
        stream_.expires_never(); // the answer may take its time
        const auto& message = parser_.value().get();
        HttpRequest request{std::string{message.method_string()}, std::string{message.target()},
                            message.body()};
        server_.handler(std::move(request), server_.reply_for(shared_from_this()));
    }

    void write(const HttpResponse& from, bool keep_alive) {
        response_ = {};
        response_.version(11);
        response_.result(from.status);
        response_.set(http::field::content_type, "application/json");
        response_.keep_alive(keep_alive);
        response_.body() = from.body;
        response_.prepare_payload();
        stream_.expires_after(kPatience);
        http::async_write(stream_, response_,
                          [self = shared_from_this()](beast::error_code error, std::size_t) {
                              if (!error && self->response_.keep_alive())
                                  self->read();
                          });
    }

    Stream stream_;
    Shared& server_; // outlives the connections
    beast::flat_buffer buffer_;
    std::optional<http::request_parser<http::string_body>> parser_;
    http::response<http::string_body> response_;
};

ControlServer::Reply Shared::reply_for(std::shared_ptr<Connection> connection) {
    const auto ticket = next_ticket++;
    waiting.emplace(ticket, std::move(connection));
    return [ticket, way = gate](HttpResponse response) {
        const std::scoped_lock lock{way->mutex};
        if (way->server == nullptr)
            return;
        asio::post(way->server->context,
                   [ticket, answer = std::move(response), server = way->server] {
                       if (const auto node = server->waiting.extract(ticket))
                           node.mapped()->answer(answer);
                   });
    };
}

} // namespace

struct ControlServer::Impl {
    explicit Impl(Handler handler) : shared{std::move(handler)} {}

    Shared shared;
    stream_protocol::acceptor acceptor{shared.context};
    std::jthread thread;

    void accept() {
        acceptor.async_accept([this](beast::error_code error, stream_protocol::socket socket) {
            if (error == asio::error::operation_aborted)
                return;
            if (!error && shared.connections < kMaxConnections)
                std::make_shared<Connection>(std::move(socket), shared)->read();
            accept();
        });
    }
};

ControlServer::ControlServer(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}

Result<std::unique_ptr<ControlServer>> ControlServer::start(base::UniqueFd listener,
                                                            Handler handler) {
    auto impl = std::make_unique<Impl>(std::move(handler));
    boost::system::error_code error;
    if (impl->acceptor.assign(stream_protocol{}, listener.get(), error); error)
        return base::fail_errno(error.value(), "serve the control socket");
    listener.release();
    impl->accept();
    impl->thread = std::jthread{[self = impl.get()] { self->shared.context.run(); }};
    ::pthread_setname_np(impl->thread.native_handle(), "api");
    return std::unique_ptr<ControlServer>{new ControlServer{std::move(impl)}};
}

ControlServer::~ControlServer() {
    impl_->shared.context.stop();
    impl_->thread.join();
    impl_->shared.close();
}

} // namespace doppel::api
