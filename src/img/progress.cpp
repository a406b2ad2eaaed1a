// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <cstdio>

#include <fmt/core.h>
#include <time.h>

#include "img/images.hpp"

namespace doppel::img {

namespace {

double now_s() {
    timespec time{};
    ::clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

constexpr double kRedrawSeconds = 0.1;

} // namespace

Progress::When progress_of(const Arguments& arguments) {
    if (arguments.has("q"))
        return Progress::When::Never;
    return arguments.has("p") ? Progress::When::Always : Progress::When::Terminal;
}

Progress::Progress(When when, std::uint64_t total_bytes)
    : when_{when}, terminal_{::isatty(STDERR_FILENO) != 0}, total_{total_bytes}, start_s_{now_s()} {
    if (when_ == When::Terminal && !terminal_)
        when_ = When::Never;
}

Progress::~Progress() {
    if (when_ == When::Never || drawn_s_ == 0)
        return;
    std::fputc('\n', terminal_ ? stderr : stdout);
}

void Progress::add(std::uint64_t bytes) {
    done_ += bytes;
    const auto now = now_s();
    if (when_ == When::Never || (now - drawn_s_ < kRedrawSeconds && done_ < total_))
        return;
    drawn_s_ = now;
    draw();
}

void Progress::draw() {
    const auto share = total_ == 0 ? 1.0 : static_cast<double>(done_) / static_cast<double>(total_);
    if (!terminal_) {
        fmt::print("    ({:.2f}/100%)\r", share * 100);
        std::fflush(stdout);
        return;
    }
    const auto seconds = drawn_s_ - start_s_;
    const auto rate = seconds > 0 ? static_cast<double>(done_) / seconds : 0;
    const auto left = rate > 0 ? static_cast<double>(total_ - done_) / rate : 0;
    const auto bar = std::string(static_cast<std::size_t>(share * 30), '#');
    fmt::print(stderr, "\r[{:<30}] {:5.1f} %  {}/s  {} s left \033[K", bar, share * 100,
               human_size(static_cast<std::uint64_t>(rate)),
               static_cast<std::uint64_t>(left + 0.5));
    std::fflush(stderr);
}

} // namespace doppel::img
