// SPDX-License-Identifier: Apache-2.0
#include <malloc.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fmt/core.h>

#include "block/nbd/server.hpp"
#include "img/background.hpp"
#include "img/images.hpp"
#include "img/signals.hpp"

namespace doppel::img {

namespace {

constexpr std::array kFlags{
    Flag{"k", "PATH", "listen on this unix socket, which is made and removed", "socket"},
    Flag{"p", "PORT", "listen on this TCP port [10809, when there is no -k]", "port"},
    Flag{"b", "ADDRESS", "listen on this address only [localhost]", "bind"},
    Flag{"x", "NAME", "name of the export [empty]", "export-name"},
    Flag{"D", "TEXT", "what clients are told about it", "description"},
    Flag{"r", "", "read only", "read-only"},
    Flag{"e", "N", "clients at once; 0: any number [16]", "shared"},
    Flag{"t", "", "go on when the last client has gone", "persistent"},
    Flag{"B", "NAME", "offer this dirty bitmap (qemu:dirty-bitmap:NAME); several times", "bitmap"},
    Flag{"A", "", "offer qemu:allocation-depth", "allocation-depth"},
    Flag{"l", "NAME", "export this internal snapshot, read only", "load-snapshot"},
    Flag{"f", "FORMAT", "format of the image [found out]", "format"},
    Flag{"cache", "MODE", "cache mode [writeback]"},
    Flag{"U", "", "do not lock; with -r", "force-share"},
    Flag{"tls-creds", "ID", "clients must use TLS with this object's credentials"},
    Flag{"object", "TYPE,id=ID,…", "credentials for TLS (endpoint=server), a secret"},
    Flag{"pid-file", "FILE", "write the process's number there once it listens"},
    Flag{"fork", "", "return once it listens, and go on in the background"},
    Flag{"handshake-limit", "SECONDS", "for a client to choose an export; 0: any time [10]"},
    Flag{"q", "", "do not say where it listens"},
    Flag{"image-opts", "", "the name is a list: driver=qcow2,file.filename=FILE"},
};

constexpr int kBacklog = 128;
constexpr int kKeptBytes = 64 << 20;

struct Listener {
    base::UniqueFd fd;
    std::string url;       // up to the export's name,
    std::string behind;    // and what follows it: for people
    std::string to_remove; // the socket's file
    Listener() = default;
    Listener(Listener&& other) noexcept
        : fd{std::move(other.fd)}, url{std::move(other.url)}, behind{std::move(other.behind)},
          to_remove{std::exchange(other.to_remove, {})} {}
    Listener& operator=(Listener&&) = delete;
    ~Listener() {
        if (!to_remove.empty())
            ::unlink(to_remove.c_str());
    }
};

Result<Listener> listen_unix(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("'{}' is too long for a socket: {} bytes, allowed {}", path,
                                      path.size(), sizeof address.sun_path - 1));
    std::memcpy(address.sun_path, path.data(), path.size());
    Listener listener;
    listener.fd.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const auto* where = reinterpret_cast<const sockaddr*>(&address);
    if (!listener.fd || ::bind(listener.fd.get(), where, sizeof address) != 0)
        return base::fail_errno(errno, fmt::format("make the socket '{}'", path),
                                errno == EADDRINUSE ? "Remove it if nobody serves there." : "");
    listener.to_remove = path;
    listener.url = "nbd+unix:///";
    listener.behind = "?socket=" + path;
    if (::listen(listener.fd.get(), kBacklog) != 0)
        return base::fail_errno(errno, fmt::format("listen on '{}'", path));
    return listener;
}

Result<Listener> listen_tcp(const std::string& host, const std::string& port) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE;
    addrinfo* found = nullptr;
    if (const int error = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0)
        return base::fail(Errc::InvalidArgument, fmt::format("address '{}', port '{}': {}", host,
                                                             port, ::gai_strerror(error)));
    const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> all{found, &::freeaddrinfo};
    int error = EADDRNOTAVAIL;
    for (const auto* one = all.get(); one != nullptr; one = one->ai_next) {
        Listener listener;
        listener.fd.reset(
            ::socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        const int yes = 1;
        ::setsockopt(listener.fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        if (listener.fd && ::bind(listener.fd.get(), one->ai_addr, one->ai_addrlen) == 0 &&
            ::listen(listener.fd.get(), kBacklog) == 0) {
            const bool six = host.find(':') != std::string::npos;
            listener.url =
                fmt::format("nbd://{}{}{}:{}/", six ? "[" : "", host, six ? "]" : "", port);
            return listener;
        }
        error = errno;
    }
    return base::fail_errno(error, fmt::format("listen on {}:{}", host, port));
}

/// A socket that whoever started us made (sd_listen_fds(3)): nbdcopy and nbdinfo with [ … ] do.
std::optional<Listener> inherited() {
    constexpr int kFirstFd = 3;
    const char* pid = std::getenv("LISTEN_PID");
    const char* count = std::getenv("LISTEN_FDS");
    if (pid == nullptr || count == nullptr || pid != std::to_string(::getpid()) ||
        std::string_view{count} != "1")
        return std::nullopt;
    Listener listener;
    listener.fd.reset(kFirstFd);
    listener.url = "the socket it was given, export ";
    return listener;
}

Result<Listener> open_listener(const Arguments& arguments) {
    if (arguments.has("k") && (arguments.has("p") || arguments.has("b")))
        return base::fail(Errc::InvalidArgument, "-k is a unix socket, -p and -b are for TCP",
                          "Use one of them.");
    if (arguments.has("k"))
        return listen_unix(arguments.get("k"));
    if (!arguments.has("p") && !arguments.has("b"))
        if (auto given = inherited())
            return std::move(*given);
    return listen_tcp(arguments.get("b", "localhost"), arguments.get("p", "10809"));
}

Result<unsigned> parse_limit(std::string_view flag, const std::string& text) {
    unsigned count = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
    if (error != std::errc{} || end != text.data() + text.size())
        return base::fail(Errc::InvalidArgument, fmt::format("{} is '{}'", flag, text),
                          "Use a number; 0 for no limit.");
    return count;
}

Result<block::nbd::Export> export_of(const Arguments& arguments, block::ImageNode& node) {
    block::nbd::Export one;
    one.name = arguments.get("x");
    one.description = arguments.get("D");
    one.node = &node;
    one.read_only = node.read_only();
    one.allocation_depth = arguments.has("A");
    one.bitmaps = arguments.all("B");
    for (const auto& bitmap : one.bitmaps)
        if (node.bitmaps() == nullptr || !node.bitmaps()->marked(bitmap))
            return base::fail(Errc::NotFound,
                              fmt::format("'{}' has no usable bitmap '{}'", node.name(), bitmap));
    if (one.name.size() > block::nbd::kMaxName || one.description.size() > block::nbd::kMaxName)
        return base::fail(Errc::InvalidArgument, "names and descriptions have at most 4096 bytes");
    return one;
}

Result<void> write_pid(const std::string& path) {
    std::FILE* file = std::fopen(path.c_str(), "we");
    if (file == nullptr)
        return base::fail_errno(errno, fmt::format("write '{}'", path));
    fmt::print(file, "{}\n", ::getpid());
    std::fclose(file);
    return {};
}

/// Until a signal comes, or the last client has gone and nobody wants us to wait for more.
Result<void> serve(Session& session, block::nbd::Server& server, bool persistent) {
    const auto* stop = interrupted();
    session.context.loop().run_until(
        [&] { return *stop || (!persistent && server.served() > 0 && server.clients() == 0); });
    return session.context.wait(server.stop());
}

Result<int> run(Session& session) {
    const auto& arguments = session.arguments;
    DOPPEL_TRY_VOID(arguments.expect(1, 1, "FILE"));
    // Payloads come and go: memory that malloc gave back to the kernel each time would be zeroed
    // and mapped anew each time.
    ::mallopt(M_MMAP_THRESHOLD, kKeptBytes);
    ::mallopt(M_TRIM_THRESHOLD, kKeptBytes);
    block::nbd::ServerOptions options;
    options.max_clients = DOPPEL_TRY(parse_limit("-e", arguments.get("e", "16")));
    options.handshake_limit = std::chrono::seconds{
        DOPPEL_TRY(parse_limit("--handshake-limit", arguments.get("handshake-limit", "10")))};
    options.warn = [&](const std::string& text) {
        fmt::print(stderr, "{}: {}\n", session.name, text);
    };
    std::unique_ptr<block::nbd::TlsCredentials> tls;
    if (arguments.has("tls-creds")) {
        const auto wanted = DOPPEL_TRY(
            session.objects.tls(arguments.get("tls-creds"), block::nbd::TlsRole::Server));
        tls = DOPPEL_TRY(block::nbd::TlsCredentials::load(wanted));
        options.tls = tls.get();
    }
    const bool read_only = arguments.has("r") || arguments.has("l");
    auto flags =
        open_flags(arguments, read_only ? block::Access::ReadOnly : block::Access::ReadWrite);
    flags.cache = arguments.get("cache", "writeback");
    auto image = DOPPEL_TRY(open_named(session, arguments.positional()[0], flags));
    Closing closing{session, *image.node};
    if (arguments.has("l"))
        DOPPEL_TRY_VOID(view_snapshot(session, *image.node, arguments.get("l")));
    auto one = DOPPEL_TRY(export_of(arguments, *image.node));
    const auto name = one.name;
    auto listener = DOPPEL_TRY(open_listener(arguments));
    block::nbd::Server server{session.context, {std::move(one)}, options};
    DOPPEL_TRY_VOID(server.listen(std::move(listener.fd)));
    if (arguments.has("pid-file"))
        DOPPEL_TRY_VOID(write_pid(arguments.get("pid-file")));
    if (!arguments.has("q")) {
        fmt::print("serving '{}' ({}, {}{}) at {}\n", arguments.positional()[0], image.format->name,
                   human_size(image.node->size()), read_only ? ", read only" : "",
                   listener.url + name + listener.behind);
        std::fflush(stdout);
    }
    say_ready();
    DOPPEL_TRY_VOID(serve(session, server, arguments.has("t")));
    DOPPEL_TRY_VOID(closing.close());
    return 0;
}

constexpr Command kCommand{
    "serve",
    "[-k SOCKET | -p PORT] [-r] [-t] [-x NAME] FILE",
    "export an image over NBD, for nbd-client, nbdcopy, qemu and others",
    "Ends when the last client has gone (-t: goes on) or at Ctrl-C; the image is then closed.\n"
    "Every command reads and writes such exports by nbd://HOST[:PORT]/NAME and\n"
    "nbd+unix:///NAME?socket=PATH; with TLS nbds:// and nbds+unix:// with the parameters\n"
    "tls-certificates=FOLDER or tls-psk-file=FILE, tls-username, tls-hostname.",
    kFlags,
    run};

} // namespace

const Command& serve_command() { return kCommand; }

} // namespace doppel::img
