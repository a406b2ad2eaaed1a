// SPDX-License-Identifier: Apache-2.0
#include "img/background.hpp"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "base/unique_fd.hpp"

namespace doppel::img {

namespace {

base::UniqueFd& parent() { // open while it waits
    static base::UniqueFd pipe;
    return pipe;
}

int wait_for(pid_t child, int pipe) {
    char word = 0;
    ssize_t got = 0;
    do
        got = ::read(pipe, &word, 1);
    while (got < 0 && errno == EINTR);
    if (got == 1)
        return 0;
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : 1;
}

} // namespace

base::Result<std::optional<int>> go_to_background() {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0)
        return base::fail_errno(errno, "go to the background");
    const base::UniqueFd reading{ends[0]};
    base::UniqueFd writing{ends[1]};
    const auto child = ::fork();
    if (child < 0)
        return base::fail_errno(errno, "go to the background");
    if (child > 0) {
        writing.reset();
        return wait_for(child, reading.get());
    }
    ::setsid();
    parent() = std::move(writing);
    return std::nullopt;
}

void say_ready() {
    if (!parent())
        return;
    const base::UniqueFd nothing{::open("/dev/null", O_RDWR | O_CLOEXEC)};
    for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        if (nothing)
            ::dup2(nothing.get(), stream);
    [[maybe_unused]] const auto said = ::write(parent().get(), "r", 1);
    parent().reset();
}

} // namespace doppel::img
