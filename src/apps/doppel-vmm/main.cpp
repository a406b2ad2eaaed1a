// SPDX-License-Identifier: Apache-2.0
/// doppel-vmm: the process of one VM. Reads its machine description from a descriptor; started by
/// `doppel run` and the daemon, not by people. Exit codes as those of `doppel run`.
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "api/control_name.hpp"
#include "api/machine_json.hpp"
#include "base/event_loop.hpp"
#include "base/log.hpp"
#include "vmm/control.hpp"
#include "vmm/kvm_verdict.hpp"
#include "vmm/vm.hpp"

namespace {

using namespace doppel;

constexpr int kBadInput = 2;
constexpr int kCrashed = 4;
constexpr int kFailure = 70;

struct Arguments {
    int description_fd = -1, console_fd = -1, started_fd = -1;
    int state_fd = -1;     // of a saved VM, which goes on
    int restore_clock = 0; // vmm::RestoreClock
    int name_is_stem = 0;  // 1: a number makes the name unique
    int log = static_cast<int>(base::LogLevel::Warning);
};

bool parse(int argc, char** argv, Arguments& out) {
    const std::map<std::string, int*> known{{"--description-fd", &out.description_fd},
                                            {"--console-fd", &out.console_fd},
                                            {"--started-fd", &out.started_fd},
                                            {"--state-fd", &out.state_fd},
                                            {"--restore-clock", &out.restore_clock},
                                            {"--name-is-stem", &out.name_is_stem},
                                            {"--log", &out.log}};
    for (int i = 1; i + 1 < argc; i += 2) {
        const auto found = known.find(argv[i]);
        const std::string value = argv[i + 1];
        if (found == known.end() ||
            std::from_chars(value.data(), value.data() + value.size(), *found->second).ec !=
                std::errc{})
            return false;
    }
    return argc % 2 == 1 && out.description_fd >= 0;
}

std::string read_all(int fd) {
    std::string text;
    std::array<char, 4096> buffer{};
    ::lseek(fd, 0, SEEK_SET);
    for (ssize_t n = 0; (n = ::read(fd, buffer.data(), buffer.size())) > 0;)
        text.append(buffer.data(), static_cast<std::size_t>(n));
    return text;
}

int complain(const base::Error& error) {
    std::fprintf(stderr, "doppel: %s\n", error.message().c_str());
    const bool ours = error.code == base::Errc::Internal || error.code == base::Errc::Io ||
                      error.code == base::Errc::OutOfMemory;
    return ours ? kFailure : kBadInput;
}

int exit_code(const vmm::Outcome& outcome) {
    switch (outcome.kind) {
    case vmm::Outcome::Kind::DebugExit: return outcome.exit_code & 0xff;
    case vmm::Outcome::Kind::Crashed: return kCrashed;
    case vmm::Outcome::Kind::Failed: return kFailure;
    default: return 0;
    }
}

/// SIGTERM and SIGINT end the VM in order. Blocked before any thread exists, so that none takes it.
base::UniqueFd block_signals() {
    sigset_t mask;
    ::sigemptyset(&mask);
    ::sigaddset(&mask, SIGTERM);
    ::sigaddset(&mask, SIGINT);
    ::pthread_sigmask(SIG_BLOCK, &mask, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
    return base::UniqueFd{::signalfd(-1, &mask, SFD_CLOEXEC)};
}

/// Empty: this VM runs without a control socket, which is said but no reason not to run.
base::Result<std::optional<api::ControlName>> claim_name(const Arguments& arguments,
                                                         const std::string& name) {
    auto claimed = arguments.name_is_stem != 0 ? api::ControlName::claim_any(name)
                                               : api::ControlName::claim(name);
    if (claimed)
        return std::optional{std::move(*claimed)};
    const auto code = claimed.error().code;
    if (code == base::Errc::Busy || code == base::Errc::InvalidArgument)
        return std::unexpected(std::move(claimed).error());
    base::log_warning("this VM has no control socket: {}", claimed.error().message());
    return std::nullopt;
}

int run(const Arguments& arguments) {
    const auto signals = block_signals();
    auto machine = api::machine_from_json(read_all(arguments.description_fd));
    if (!machine)
        return complain(machine.error());
    auto name = claim_name(arguments, machine->name);
    if (!name)
        return complain(name.error());
    if (*name)
        machine->name = (*name)->name();
    auto vm = vmm::Vm::create(
        *machine, {.console = base::UniqueFd{arguments.console_fd},
                   .started = base::UniqueFd{arguments.started_fd},
                   .state = base::UniqueFd{arguments.state_fd},
                   .restore_clock = static_cast<vmm::RestoreClock>(arguments.restore_clock)});
    if (!vm)
        return complain(vm.error());
    std::unique_ptr<vmm::Control> control;
    if (*name) {
        auto served = vmm::Control::serve(**vm, std::move(**name));
        if (!served)
            return complain(served.error());
        control = std::move(*served);
    }
    if (auto watched = (*vm)->loop().add(signals.get(), EPOLLIN, [&](auto) { (*vm)->stop(); });
        !watched)
        return complain(watched.error());
    const auto outcome = (*vm)->run();
    if (!outcome.report.empty())
        std::fprintf(stderr, "doppel: %s\n", outcome.report.c_str());
    if (machine->stats)
        std::fputs((*vm)->statistics().c_str(), stderr);
    if (auto written = (*vm)->write_profile(); !written)
        return complain(written.error());
    return exit_code(outcome);
}

/// For the engine's choice: the self-test of KVM, in a process that may be killed; and what is
/// known of it (tests ask). One line: "good" or "bad REASON".
bool answer_about_kvm(std::string_view question) {
    if (question == "--kvm-self-test") {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        std::puts(vmm::kvm_self_test_line().c_str());
    } else if (question == "--kvm-verdict") {
        const auto verdict = vmm::kvm_verdict();
        std::puts(verdict.runs_kernels ? "good" : ("bad " + verdict.reason).c_str());
    } else {
        return false;
    }
    return true;
}

} // namespace

int main(int argc, char** argv) {
    if (argc == 2 && answer_about_kvm(argv[1]))
        return 0;
    Arguments arguments;
    if (!parse(argc, argv, arguments)) {
        std::fputs("doppel-vmm is started by 'doppel run'; it takes --description-fd N "
                   "[--console-fd N] [--started-fd N] [--state-fd N] [--restore-clock N] "
                   "[--name-is-stem N] [--log LEVEL]\n",
                   stderr);
        return kBadInput;
    }
    base::set_log_level(static_cast<base::LogLevel>(arguments.log));
    return run(arguments);
}
