// SPDX-License-Identifier: Apache-2.0
#pragma once
/// DOPPEL_VERIFY(condition, "what was expected"): our own mistakes end this VM process, in
/// release builds too. Never for what a guest or a user can cause. Any thread.

namespace doppel::base {

/// Called once before abort() with whatever context the process can add (vCPU state, device).
using VerifyReporter = void (*)();
void set_verify_reporter(VerifyReporter reporter) noexcept;

[[noreturn, gnu::cold, gnu::noinline]] void verify_failed(const char* condition, const char* what,
                                                          const char* file, int line) noexcept;

} // namespace doppel::base

#define DOPPEL_VERIFY(condition, what)                                                             \
    (__builtin_expect(static_cast<bool>(condition), 1)                                             \
         ? static_cast<void>(0)                                                                    \
         : ::doppel::base::verify_failed(#condition, what, __FILE__, __LINE__))
