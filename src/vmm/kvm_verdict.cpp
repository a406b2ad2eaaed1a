// SPDX-License-Identifier: Apache-2.0
#include "vmm/kvm_verdict.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>

#include <fmt/core.h>

#include "base/unique_fd.hpp"
#include "cpu/kvm/self_test.hpp"

namespace doppel::vmm {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

namespace {

constexpr const char* kSelfTestVersion = "1"; // a new one voids what older versions kept

std::string first_line(const std::string& path) {
    std::ifstream file{path};
    std::string line;
    std::getline(file, line);
    return line;
}

/// "kvm kvm_amd": loading another module changes what /dev/kvm is.
std::string kvm_modules() {
    std::vector<std::string> names;
    std::error_code none;
    for (const auto& entry : std::filesystem::directory_iterator{"/sys/module", none})
        if (auto name = entry.path().filename().string(); name.starts_with("kvm"))
            names.push_back(std::move(name));
    std::ranges::sort(names);
    std::string all;
    for (const auto& name : names)
        all += " " + name;
    return all;
}

std::optional<KvmVerdict> parse(const std::string& line) {
    if (line == "good")
        return KvmVerdict{true, {}};
    if (line.starts_with("bad ") && line.size() > 4)
        return KvmVerdict{false, line.substr(4)};
    return std::nullopt;
}

std::optional<KvmVerdict> kept(const KvmVerdictSource& source) {
    std::ifstream file{source.cache_file};
    std::string key, line;
    if (!std::getline(file, key) || !std::getline(file, line) || key != source.key)
        return std::nullopt;
    return parse(line);
}

/// Whole or not at all; where it cannot be written, the next VM asks again.
void keep(const KvmVerdictSource& source, const std::string& line) {
    if (source.cache_file.empty())
        return;
    std::error_code error;
    const std::filesystem::path path{source.cache_file};
    std::filesystem::create_directories(path.parent_path(), error);
    const auto partial = fmt::format("{}.{}", source.cache_file, ::getpid());
    {
        std::ofstream file{partial};
        file << source.key << '\n' << line << '\n';
        if (!file.flush())
            return;
    }
    std::filesystem::rename(partial, path, error);
    if (error)
        std::filesystem::remove(partial, error);
}

struct Child {
    pid_t pid = -1;
    base::UniqueFd output;
};

std::optional<Child> start(const std::vector<std::string>& command) {
    int ends[2];
    if (command.empty() || ::pipe2(ends, O_CLOEXEC) != 0)
        return std::nullopt;
    Child child{-1, base::UniqueFd{ends[0]}};
    const base::UniqueFd theirs{ends[1]};
    std::vector<char*> arguments;
    for (const auto& word : command)
        arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, theirs.get(), STDOUT_FILENO);
    const int error = ::posix_spawn(&child.pid, command.front().c_str(), &actions, nullptr,
                                    arguments.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    if (error != 0)
        return std::nullopt;
    return child;
}

/// What the child prints until it ends; nothing when its time is up first.
std::optional<std::string> read_until(int fd, Clock::time_point end) {
    std::string text;
    std::array<char, 512> buffer{};
    for (;;) {
        const auto left = std::chrono::duration_cast<milliseconds>(end - Clock::now()).count();
        pollfd poll{fd, POLLIN, 0};
        const int ready = left <= 0 ? 0 : ::poll(&poll, 1, static_cast<int>(left));
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0)
            return std::nullopt;
        const auto n = ::read(fd, buffer.data(), buffer.size());
        if (n <= 0)
            return text;
        text.append(buffer.data(), static_cast<std::size_t>(n));
    }
}

/// A child that hangs inside the kernel may not even die: then it is left behind.
void end(pid_t pid) {
    ::kill(pid, SIGKILL);
    for (int i = 0; i < 200; ++i) {
        if (::waitpid(pid, nullptr, WNOHANG) != 0)
            return;
        ::usleep(10'000);
    }
}

} // namespace

KvmVerdictSource default_verdict_source() {
    KvmVerdictSource source;
    utsname host{};
    ::uname(&host);
    source.key =
        fmt::format("{} {} {}{}", kSelfTestVersion, first_line("/proc/sys/kernel/random/boot_id"),
                    host.release, kvm_modules());
    const char* cache = std::getenv("XDG_CACHE_HOME");
    const char* home = std::getenv("HOME");
    if (cache != nullptr && *cache == '/')
        source.cache_file = fmt::format("{}/doppel/kvm-self-test", cache);
    else if (home != nullptr && *home == '/')
        source.cache_file = fmt::format("{}/.cache/doppel/kvm-self-test", home);
    return source;
}

KvmVerdict kvm_verdict(const KvmVerdictSource& source) {
    if (!source.cache_file.empty())
        if (auto known = kept(source))
            return *known;
    const auto child = start(source.command);
    if (!child)
        return {false, "its self-test cannot be started"};
    auto text = read_until(child->output.get(), Clock::now() + source.patience);
    end(child->pid);
    if (!text) // kept, too: not every VM should wait for it
        text = fmt::format("bad its self-test hangs for {} s", source.patience.count() / 1000);
    const auto line = text->substr(0, text->find('\n'));
    auto verdict = parse(line);
    if (!verdict)
        return {false, "its self-test dies"};
    keep(source, line);
    return *verdict;
}

std::string kvm_self_test_line() {
    const auto result = cpu::kvm::self_test();
    if (!result)
        return "bad " + result.error().message();
    return result->runs_kernels() ? "good" : "bad " + result->reason();
}

} // namespace doppel::vmm
