// SPDX-License-Identifier: Apache-2.0
#include "base/log.hpp"

#include <array>

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

namespace doppel::base {

namespace {

std::atomic<LogLevel> threshold{LogLevel::Warning};

constexpr std::array<std::string_view, 6> kNames{"trace",   "debug", "info",
                                                 "warning", "error", "off"};

spdlog::logger& logger() {
    static const auto instance = [] {
        auto created = spdlog::stderr_color_mt("doppel");
        created->set_level(spdlog::level::trace); // the threshold above decides
        created->set_pattern("%n: %^%l%$: %v");
        return created;
    }();
    return *instance;
}

} // namespace

void set_log_level(LogLevel level) noexcept { threshold.store(level, std::memory_order_relaxed); }
LogLevel log_level() noexcept { return threshold.load(std::memory_order_relaxed); }

bool parse_log_level(std::string_view name, LogLevel& out) noexcept {
    for (std::size_t i = 0; i < kNames.size(); ++i) {
        if (kNames[i] == name) {
            out = static_cast<LogLevel>(i);
            return true;
        }
    }
    return false;
}

void log_line(LogLevel level, std::string_view text) noexcept {
    logger().log(static_cast<spdlog::level::level_enum>(level), text);
}

} // namespace doppel::base
