// SPDX-License-Identifier: Apache-2.0
#include "vmm/console.hpp"

#include <fcntl.h>
#include <pty.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdio>

#include "chardev/fd_backend.hpp"
#include "chardev/file_sink.hpp"
#include "chardev/socket_listener.hpp"

namespace doppel::vmm {

using base::Result;

namespace {

Result<OpenConsole> from_fd(base::EventLoop& loop, base::UniqueFd fd) {
    OpenConsole console;
    console.backend = DOPPEL_TRY(chardev::FdBackend::create(loop, std::move(fd)));
    return console;
}

Result<OpenConsole> new_pty(const char* what, base::EventLoop& loop) {
    int master = -1;
    int slave = -1;
    termios raw{};
    ::cfmakeraw(&raw);
    raw.c_cflag |= CREAD;
    std::array<char, PATH_MAX> name{};
    if (::openpty(&master, &slave, nullptr, &raw, nullptr) != 0)
        return base::fail_errno(errno, "create a pseudo-terminal");
    base::UniqueFd keep_open{slave};
    base::UniqueFd ours{master};
    if (::ttyname_r(slave, name.data(), name.size()) != 0)
        return base::fail_errno(errno, "name the pseudo-terminal");
    ::fcntl(master, F_SETFD, FD_CLOEXEC);
    ::fcntl(slave, F_SETFD, FD_CLOEXEC);
    std::fprintf(stderr, "doppel: %s is %s\n", what, name.data());
    auto console = DOPPEL_TRY(from_fd(loop, std::move(ours)));
    console.keep_open = std::move(keep_open);
    return console;
}

} // namespace

Result<OpenConsole> open_console(const char* name, const description::Console& console,
                                 base::EventLoop& loop, base::UniqueFd inherited) {
    using description::ConsoleKind;
    OpenConsole out;
    switch (console.kind) {
    case ConsoleKind::Stdio:
        if (!inherited)
            return base::fail(base::Errc::InvalidArgument, "console 'stdio' needs a descriptor",
                              "start the VM with 'doppel run'");
        return from_fd(loop, std::move(inherited));
    case ConsoleKind::Pty: return new_pty(name, loop);
    case ConsoleKind::File:
        out.backend = DOPPEL_TRY(chardev::FileSink::create(console.path));
        break;
    case ConsoleKind::Socket:
        out.backend = DOPPEL_TRY(chardev::SocketListener::create(loop, console.path));
        break;
    case ConsoleKind::None: out.backend = std::make_unique<chardev::NullBackend>(); break;
    }
    return out;
}

} // namespace doppel::vmm
