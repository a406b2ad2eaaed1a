// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>

#include "api/control.hpp"
#include "api/control_client.hpp"
#include "api/control_name.hpp"
#include "api/control_server.hpp"
#include "base/test_folder.hpp"

using namespace doppel;
using namespace doppel::api;

namespace {

/// A runtime folder of its own for each case.
struct Folder {
    base::TestFolder folder{"doppel-api"};
    Folder() { ::setenv("XDG_RUNTIME_DIR", folder.path().c_str(), 1); }
};

/// Answers with what it was asked; /never keeps the reply and does not call it.
struct EchoServer {
    Folder folder;
    ControlName name = ControlName::claim("vm").value();
    ControlServer::Reply kept;
    std::atomic<bool> has_kept{false};
    std::unique_ptr<ControlServer> server =
        ControlServer::start(name.take_listener(), [this](HttpRequest request, auto reply) {
            if (request.target == "/never") {
                kept = reply;
                has_kept = true;
                has_kept.notify_all();
            } else if (request.target == "/error")
                reply({409, to_json(base::Error{base::Errc::Busy, 0, "it is busy", {}, {}})});
            else
                reply({200, request.method + " " + request.target + " " + request.body});
        }).value();
};

int raw_connection() { return connect_to("vm").value().release(); }

std::string talk(int fd, std::string_view text) {
    CHECK(::send(fd, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()));
    ::shutdown(fd, SHUT_WR);
    std::string answer;
    char buffer[4096];
    for (ssize_t n = 0; (n = ::read(fd, buffer, sizeof buffer)) > 0;)
        answer.append(buffer, static_cast<std::size_t>(n));
    ::close(fd);
    return answer;
}

} // namespace

TEST_CASE("messages come back as they went; what is missing, unknown or mistyped is named") {
    const Job job{7, "save", "running", 1, 1ull << 40, "a \"quoted\" reason"};
    const auto copy = from_json<Job>(to_json(job));
    REQUIRE(copy);
    CHECK(copy->id == 7);
    CHECK(copy->total_bytes == 1ull << 40);
    CHECK(copy->error == job.error);
    VmStatus status;
    status.forwards = {"tcp:127.0.0.1:2222:22", "udp:0.0.0.0:53:53"};
    const auto same = from_json<VmStatus>(to_json(status));
    REQUIRE(same);
    CHECK(same->forwards == status.forwards);
    const auto refused = [](std::string_view text) {
        const auto result = from_json<SaveRequest>(text);
        return result ? std::string{"accepted"} : result.error().message();
    };
    CHECK(refused(R"({"path": "/x", "keep_paused": true})") == "accepted");
    CHECK(refused(R"({"path": "/x"})").find("'keep_paused'") != std::string::npos);
    CHECK(refused(R"({"path": 3, "keep_paused": true})").find("'path'") != std::string::npos);
    CHECK(refused(R"({"path": "/x", "keep_paused": true, "more": 1})").find("unknown") !=
          std::string::npos);
    CHECK(refused("[1, 2]").find("not a JSON object") != std::string::npos);
    CHECK(refused("{").find("not a JSON object") != std::string::npos);
}

TEST_CASE("an error keeps its code and its sentence") {
    const base::Error busy{base::Errc::Busy, 0, "it is busy", {}, "wait"};
    const auto back = error_from_json(to_json(busy));
    CHECK(back.code == base::Errc::Busy);
    CHECK(back.message() == busy.message());
    CHECK(http_status(base::Errc::Busy) == 409);
    CHECK(error_from_json("nonsense").code == base::Errc::Internal);
}

TEST_CASE("a name belongs to one VM at a time, and is free again when that ends") {
    const Folder folder;
    {
        const auto first = ControlName::claim("vm");
        REQUIRE(first);
        const auto second = ControlName::claim("vm");
        REQUIRE(!second);
        CHECK(second.error().code == base::Errc::Busy);
        const auto any = ControlName::claim_any("vm");
        REQUIRE(any);
        CHECK(any->name() == "vm-2");
        CHECK(control_names().value() == std::vector<std::string>{"vm", "vm-2"});
    }
    CHECK(control_names().value().empty());
    CHECK(connect_to("vm").error().code == base::Errc::NotFound);
    CHECK(ControlName::claim("vm"));
}

TEST_CASE("a socket that a killed VM left behind is in nobody's way") {
    const Folder folder;
    const auto path = control_folder().value() + "/vm.sock";
    REQUIRE(::close(::open(path.c_str(), O_CREAT | O_WRONLY, 0600)) == 0);
    CHECK(ControlName::claim("vm"));
}

TEST_CASE("names that are paths, hidden or too long are refused") {
    const Folder folder;
    for (const auto& name :
         {std::string{}, std::string{"a/b"}, std::string{".x"}, std::string(200, 'x')}) {
        const auto claimed = ControlName::claim(name);
        REQUIRE(!claimed);
        CHECK(claimed.error().code == base::Errc::InvalidArgument);
    }
}

TEST_CASE("a control folder that others may enter is refused") {
    const Folder folder;
    const auto path = control_folder().value();
    REQUIRE(::chmod(path.c_str(), 0755) == 0);
    CHECK(control_folder().error().code == base::Errc::PermissionDenied);
}

TEST_CASE_FIXTURE(EchoServer, "requests on one connection are answered in turn") {
    auto client = ControlClient::connect("vm").value();
    CHECK(client.get("/a").value() == "GET /a ");
    CHECK(client.post("/b", "{}").value() == "POST /b {}");
    const auto refused = client.get("/error");
    REQUIRE(!refused);
    CHECK(refused.error().code == base::Errc::Busy);
    CHECK(client.get("/c").value() == "GET /c ");
}

TEST_CASE_FIXTURE(EchoServer, "who waits for his answer keeps nobody else waiting") {
    const int waiting = raw_connection();
    const std::string_view request = "GET /never HTTP/1.1\r\nHost: x\r\n\r\n";
    REQUIRE(::send(waiting, request.data(), request.size(), MSG_NOSIGNAL) > 0);
    auto client = ControlClient::connect("vm").value();
    CHECK(client.get("/a").value() == "GET /a ");
    ::close(waiting);
    has_kept.wait(false); // the server has read it
    server.reset();
    kept({200, "too late"}); // goes nowhere
}

TEST_CASE_FIXTURE(EchoServer, "what is no HTTP, too long or cut off ends the connection only") {
    CHECK(talk(raw_connection(), "\x01\x02\x03 nonsense\r\n\r\n").empty());
    CHECK(talk(raw_connection(), "GET / HTTP/1.1\r\nX: " + std::string(1u << 14, 'y')).empty());
    CHECK(talk(raw_connection(), "POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n")
              .starts_with("HTTP/1.1 413"));
    CHECK(talk(raw_connection(), "GET / HTT").empty());
    CHECK(ControlClient::connect("vm").value().get("/a"));
}
