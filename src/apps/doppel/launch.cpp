// SPDX-License-Identifier: Apache-2.0
/// The VM is another process so that this one, which holds the terminal, survives whatever happens
/// to it and can put the terminal back.
#include "apps/doppel/launch.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include <fmt/core.h>

#include "api/machine_json.hpp"
#include "apps/doppel/terminal.hpp"
#include "apps/doppel/vm_commands.hpp"
#include "base/unique_fd.hpp"

namespace doppel::cli {

using base::Errc;
using base::Result;
using base::UniqueFd;

namespace {

/// doppel-vmm beside this executable (a build tree), else in ../libexec/doppel (installed).
Result<std::string> vmm_path() {
    std::array<char, PATH_MAX> self{};
    const auto length = ::readlink("/proc/self/exe", self.data(), self.size() - 1);
    if (length <= 0)
        return base::fail_errno(errno, "find this executable's folder");
    const std::string path{self.data(), static_cast<std::size_t>(length)};
    const auto folder = path.substr(0, path.rfind('/'));
    for (const char* place : {"/doppel-vmm", "/../libexec/doppel/doppel-vmm"})
        if (::access((folder + place).c_str(), X_OK) == 0)
            return folder + place;
    return base::fail(Errc::NotFound, fmt::format("doppel-vmm is not in '{}'", folder),
                      "install or build Doppel again");
}

Result<UniqueFd> description_fd(const description::Machine& machine) {
    const auto text = api::machine_to_json(machine);
    UniqueFd fd{::memfd_create("doppel-description", MFD_CLOEXEC)};
    if (!fd || ::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
        return base::fail_errno(errno, "write the machine description");
    return fd;
}

struct Child {
    pid_t pid = -1;
    UniqueFd pidfd;
    UniqueFd console; // our end
    UniqueFd started; // becomes readable when the guest starts
};

/// What doppel-vmm inherits: each descriptor and the option that tells it.
struct Inheritance {
    const char* option;
    int fd;
};

[[noreturn]] void exec_vmm(const std::string& path, std::span<const Inheritance> inherited,
                           std::vector<std::string> arguments, pid_t parent) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL); // no VM without somebody who watches it
    if (::getppid() != parent)
        ::_exit(127);
    ::setpgid(0, 0); // Ctrl-C in a cooked terminal is for us to handle
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    // The descriptors lose close-on-exec by being duplicated onto 3, 4 …
    std::vector<int> high;
    for (const auto& one : inherited)
        high.push_back(::fcntl(one.fd, F_DUPFD, 20));
    int next = 3;
    for (std::size_t i = 0; i < high.size(); ++i) {
        arguments.insert(arguments.end(), {inherited[i].option, fmt::format("{}", next)});
        ::dup2(high[i], next++);
    }
    ::close_range(static_cast<unsigned>(next), ~0u, 0);
    std::vector<char*> argv{const_cast<char*>("doppel-vmm")};
    for (auto& argument : arguments)
        argv.push_back(argument.data());
    argv.push_back(nullptr);
    ::execv(path.c_str(), argv.data());
    ::_exit(127);
}

std::vector<std::string> vmm_arguments(const LaunchOptions& options) {
    return {"--log",           fmt::format("{}", static_cast<int>(options.log_level)),
            "--name-is-stem",  options.name_is_stem ? "1" : "0",
            "--restore-clock", options.restored_clock_continues ? "1" : "0"};
}

Result<UniqueFd> open_state_file(const std::string& path) {
    if (path.empty())
        return UniqueFd{};
    UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!fd)
        return base::fail_errno(errno, fmt::format("cannot open state file '{}'", path));
    return fd;
}

Result<Child> start_vmm(const description::Machine& machine, const LaunchOptions& options) {
    const auto path = DOPPEL_TRY(vmm_path());
    const auto description = DOPPEL_TRY(description_fd(machine));
    const auto state = DOPPEL_TRY(open_state_file(options.state_file));
    int console[2];
    int started[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console) != 0 ||
        ::pipe2(started, O_CLOEXEC) != 0)
        return base::fail_errno(errno, "connect to doppel-vmm");
    Child child;
    child.console.reset(console[0]);
    child.started.reset(started[0]);
    const UniqueFd their_console{console[1]};
    const UniqueFd their_started{started[1]};
    const auto parent = ::getpid();
    child.pid = ::fork();
    if (child.pid < 0)
        return base::fail_errno(errno, "start doppel-vmm");
    if (child.pid == 0) {
        std::vector<Inheritance> inherited{{"--description-fd", description.get()},
                                           {"--console-fd", console[1]},
                                           {"--started-fd", started[1]}};
        if (state)
            inherited.push_back({"--state-fd", state.get()});
        exec_vmm(path, inherited, vmm_arguments(options), parent);
    }
    child.pidfd.reset(static_cast<int>(::syscall(SYS_pidfd_open, child.pid, 0)));
    if (!child.pidfd)
        return base::fail_errno(errno, "watch doppel-vmm");
    return child;
}

void write_all(int fd, std::string_view bytes) {
    while (!bytes.empty()) {
        const auto n = ::write(fd, bytes.data(), bytes.size());
        if (n > 0)
            bytes.remove_prefix(static_cast<std::size_t>(n));
        else if (n < 0 && errno == EAGAIN) { // a terminal that somebody else made nonblocking
            pollfd poll{fd, POLLOUT, 0};
            ::poll(&poll, 1, 1000);
        } else if (n < 0 && errno != EINTR)
            return;
    }
}

/// Carries bytes until doppel-vmm has ended.
class Relay {
public:
    Relay(Child& child, UniqueFd signals) : child_{child}, signals_{std::move(signals)} {}

    void run() {
        while (!ended_)
            step();
        while (copy_output()) {
        }
        terminal_.restore();
    }

private:
    enum { kStdin, kConsole, kStarted, kSignals, kEnd, kCount };

    void step() {
        std::array<pollfd, kCount> fds{};
        fds[kStdin] = {to_guest_.size() < kInputLimit ? stdin_ : -1, POLLIN, 0};
        fds[kConsole] = {child_.console.get(), // -1: closed
                         static_cast<short>(POLLIN | (to_guest_.empty() ? 0 : POLLOUT)), 0};
        fds[kStarted] = {child_.started.get(), POLLIN, 0};
        fds[kSignals] = {signals_.get(), POLLIN, 0};
        fds[kEnd] = {child_.pidfd.get(), POLLIN, 0};
        const int ready = ::poll(fds.data(), fds.size(), ending_ ? kPatienceMs : -1);
        if (ready < 0)
            return;
        if (ready == 0) { // asked to end, and nothing has moved since: it hangs
            std::fprintf(stderr, "doppel: the VM does not end by itself and is killed\r\n");
            ::kill(child_.pid, SIGKILL);
        }
        if (fds[kStarted].revents != 0)
            started();
        if (fds[kStdin].revents != 0)
            read_typed();
        if ((fds[kConsole].revents & POLLOUT) != 0)
            send_typed();
        if ((fds[kConsole].revents & (POLLIN | POLLHUP)) != 0 && !copy_output())
            console_ended();
        if (fds[kSignals].revents != 0)
            on_signal();
        ended_ = fds[kEnd].revents != 0;
    }

    /// The guest runs: from here on the terminal is its own.
    void started() {
        std::array<char, 128> name{};
        const auto length = ::read(child_.started.get(), name.data(), name.size());
        name_.assign(name.data(), length > 0 ? static_cast<std::size_t>(length) : 0);
        child_.started.reset();
        terminal_.enter();
        stdin_ = STDIN_FILENO;
    }

    void read_typed() {
        std::array<char, 1024> buffer{};
        const auto n = ::read(STDIN_FILENO, buffer.data(), buffer.size());
        if (n <= 0) {
            if (n == 0 || errno != EINTR)
                stdin_ = -1; // end of a script: the guest goes on
            return;
        }
        std::span<const char> typed{buffer.data(), static_cast<std::size_t>(n)};
        if (!terminal_.is_terminal()) {
            to_guest_.append(typed.data(), typed.size());
            return;
        }
        while (!typed.empty()) {
            std::size_t used = 0;
            const auto action = filter_.feed(typed, to_guest_, used);
            typed = typed.subspan(used);
            if (action == EscapeFilter::Action::Quit)
                end_vm();
            if (action == EscapeFilter::Action::Help)
                write_all(STDOUT_FILENO, kEscapeHelp);
            if (action == EscapeFilter::Action::Pause)
                say(toggle_pause(name_));
            if (action == EscapeFilter::Action::Save)
                say(save_here(name_));
        }
    }

    static void say(const std::string& text) {
        write_all(STDOUT_FILENO, fmt::format("\r\n[{}]\r\n", text));
    }

    void send_typed() {
        const auto n = ::send(child_.console.get(), to_guest_.data(), to_guest_.size(),
                              MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0)
            to_guest_.erase(0, static_cast<std::size_t>(n));
    }

    /// The guest has said its last. What doppel-vmm still has to say (a crash report, --stats) goes
    /// to a cooked terminal behind it: it waits until our end is closed.
    void console_ended() {
        terminal_.restore();
        stdin_ = -1;
        child_.console.reset();
    }

    bool copy_output() {
        std::array<char, 65536> buffer;
        const auto n = ::recv(child_.console.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
        if (n > 0)
            write_all(STDOUT_FILENO, {buffer.data(), static_cast<std::size_t>(n)});
        return n > 0 || (n < 0 && errno == EAGAIN && !ended_);
    }

    void on_signal() {
        signalfd_siginfo info{};
        if (::read(signals_.get(), &info, sizeof info) != static_cast<ssize_t>(sizeof info))
            return;
        if (info.ssi_signo == SIGCONT) {
            if (stdin_ >= 0)
                terminal_.enter(); // the shell has taken the terminal back meanwhile
        } else {
            end_vm();
        }
    }

    /// In order at first; a second wish, or five seconds without a sign of life, kills.
    void end_vm() {
        ::kill(child_.pid, ending_ ? SIGKILL : SIGTERM);
        ending_ = true;
    }

    static constexpr std::size_t kInputLimit = 1u << 16;
    static constexpr int kPatienceMs = 5000;
    Child& child_;
    UniqueFd signals_;
    RawTerminal terminal_;
    EscapeFilter filter_;
    std::string to_guest_;
    std::string name_; // of the VM, once it has started
    int stdin_ = -1;   // watched once the guest runs
    bool ending_ = false;
    bool ended_ = false;
};

UniqueFd take_signals() {
    sigset_t mask;
    ::sigemptyset(&mask);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGCONT})
        ::sigaddset(&mask, signal);
    ::sigprocmask(SIG_BLOCK, &mask, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
    return UniqueFd{::signalfd(-1, &mask, SFD_CLOEXEC)};
}

} // namespace

Result<int> launch(const description::Machine& machine, const LaunchOptions& options) {
    auto signals = take_signals();
    auto child = DOPPEL_TRY(start_vmm(machine, options));
    Relay{child, std::move(signals)}.run();
    int status = 0;
    while (::waitpid(child.pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (WIFEXITED(status))
        return WEXITSTATUS(status);
    std::fprintf(stderr, "doppel: the VM's process died of signal %d\n", WTERMSIG(status));
    return 128 + WTERMSIG(status);
}

} // namespace doppel::cli
