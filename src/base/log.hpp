// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Logging to stderr with levels (spdlog behind it, out of the headers). Any thread, but never
/// on a vCPU thread at info level or chattier except behind RateLimit.
#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include <fmt/core.h>

namespace doppel::base {

enum class LogLevel : std::uint8_t { Trace, Debug, Info, Warning, Error, Off };

void set_log_level(LogLevel level) noexcept;
LogLevel log_level() noexcept;
/// "trace", "debug", "info", "warning", "error", "off"; false when the name is none of them.
bool parse_log_level(std::string_view name, LogLevel& out) noexcept;
void log_line(LogLevel level, std::string_view text) noexcept;

template <typename... Args>
void log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
    if (level >= log_level())
        log_line(level, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args> void log_debug(fmt::format_string<Args...> format, Args&&... args) {
    log(LogLevel::Debug, format, std::forward<Args>(args)...);
}
template <typename... Args> void log_info(fmt::format_string<Args...> format, Args&&... args) {
    log(LogLevel::Info, format, std::forward<Args>(args)...);
}
template <typename... Args> void log_warning(fmt::format_string<Args...> format, Args&&... args) {
    log(LogLevel::Warning, format, std::forward<Args>(args)...);
}
template <typename... Args> void log_error(fmt::format_string<Args...> format, Args&&... args) {
    log(LogLevel::Error, format, std::forward<Args>(args)...);
}

/// Lets the first `burst` events through and counts the rest: a guest must not flood the log.
class RateLimit {
public:
    explicit RateLimit(std::uint32_t burst) : burst_{burst} {}
    bool allow() noexcept { return count_.fetch_add(1, std::memory_order_relaxed) < burst_; }
    std::uint64_t count() const noexcept { return count_.load(std::memory_order_relaxed); }

private:
    std::uint32_t burst_;
    std::atomic<std::uint64_t> count_{0};
};

} // namespace doppel::base
