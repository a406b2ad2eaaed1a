// SPDX-License-Identifier: Apache-2.0
#include "base/verify.hpp"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace doppel::base {

namespace {
std::atomic<VerifyReporter> reporter_hook{nullptr};
}

void set_verify_reporter(VerifyReporter reporter) noexcept { reporter_hook.store(reporter); }

void verify_failed(const char* condition, const char* what, const char* file, int line) noexcept {
    std::fprintf(stderr, "doppel: internal error at %s:%d: %s (%s)\n", file, line, what, condition);
    if (const auto reporter = reporter_hook.exchange(nullptr))
        reporter(); // exchanged: a failure inside the reporter must not recurse
    std::abort();
}

} // namespace doppel::base
