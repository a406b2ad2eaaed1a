// SPDX-License-Identifier: Apache-2.0
#include "api/control_client.hpp"

#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <fmt/core.h>

#include "api/control_name.hpp"

namespace doppel::api {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::local::stream_protocol;
using base::Errc;
using base::Result;

struct ControlClient::Impl {
    std::string name;
    asio::io_context context;
    stream_protocol::socket socket{context};
    beast::flat_buffer buffer;

    Result<std::string> call(http::verb method, std::string_view target, std::string body);
};

ControlClient::ControlClient(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
ControlClient::ControlClient(ControlClient&&) noexcept = default;
ControlClient::~ControlClient() = default;

Result<ControlClient> ControlClient::connect(const std::string& name) {
    auto fd = DOPPEL_TRY(connect_to(name));
    auto impl = std::make_unique<Impl>();
    impl->name = name;
    boost::system::error_code error;
    if (impl->socket.assign(stream_protocol{}, fd.get(), error); error)
        return base::fail_errno(error.value(), fmt::format("talk to VM '{}'", name));
    fd.release();
    return ControlClient{std::move(impl)};
}

Result<std::string> ControlClient::Impl::call(http::verb method, std::string_view target,
                                              std::string body) {
    http::request<http::string_body> request{method, {target.data(), target.size()}, 11};
    request.set(http::field::host, "doppel");
    if (!body.empty())
        request.set(http::field::content_type, "application/json");
    request.body() = std::move(body);
    request.prepare_payload();
    http::response<http::string_body> response;
    beast::error_code error;
    http::write(socket, request, error);
    if (!error)
        http::read(socket, buffer, response, error);
    if (error)
        return base::fail(Errc::Io,
                          fmt::format("VM '{}' ended the conversation: {}", name, error.message()));
    if (response.result_int() / 100 != 2)
        return std::unexpected(error_from_json(response.body()));
    return std::move(response.body());
}

Result<std::string> ControlClient::get(std::string_view target) {
    return impl_->call(http::verb::get, target, {});
}

Result<std::string> ControlClient::post(std::string_view target, std::string body) {
    return impl_->call(http::verb::post, target, std::move(body));
}

} // namespace doppel::api
