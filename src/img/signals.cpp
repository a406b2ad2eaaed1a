// SPDX-License-Identifier: Apache-2.0
#include "img/signals.hpp"

#include <unistd.h>

#include <atomic>
#include <csignal>

#include <fmt/core.h>

namespace doppel::img {

namespace {

/// A list that only grows, so that the handler may walk it at any moment.
struct Unfinished {
    std::string path;
    const Unfinished* next;
};

std::atomic<const Unfinished*> unfinished{nullptr};
std::atomic<bool> asked{false}; // somebody looks at stop_requested
bool stop_requested = false;    // read by the loop's thread between chunks
volatile std::sig_atomic_t last_signal = SIGINT;
std::string sentence; // made before a signal can come

void on_signal(int signal) {
    last_signal = signal;
    if (asked && !stop_requested) {
        stop_requested = true;
        return;
    }
    for (const auto* one = unfinished.load(); one != nullptr; one = one->next)
        ::unlink(one->path.c_str());
    (void)!::write(STDERR_FILENO, sentence.data(), sentence.size());
    ::_exit(interrupted_code());
}

} // namespace

int interrupted_code() { return 128 + last_signal; }

void end_cleanly_on_signals(std::string_view name) {
    sentence = fmt::format("{}: interrupted\n", name);
    struct sigaction action{};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    for (const int signal : {SIGINT, SIGTERM, SIGHUP})
        ::sigaction(signal, &action, nullptr);
}

const bool* interrupted() {
    asked = true;
    return &stop_requested;
}

void remove_on_signal(const std::string& path) {
    unfinished = new Unfinished{path, unfinished.load()}; // the process's end takes them
}

std::string part_suffix() { return fmt::format(".part-{}", ::getpid()); }

} // namespace doppel::img
