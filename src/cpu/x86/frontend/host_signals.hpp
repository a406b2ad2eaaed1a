// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Host signals that arise inside translated code: SIGFPE of a guest's division or unmasked
/// floating-point exception, SIGSEGV of a misaligned SSE operand or of a poll. The handler sends
/// the thread to an exit stub; the dispatcher then lets the interpreter raise the guest's
/// exception.
#include "base/result.hpp"
#include "cpu/translator/cache/code_cache.hpp"
#include "cpu/x86/frontend/stubs.hpp"

namespace doppel::cpu::x86::frontend {

/// While it lives, signals of this thread that hit `cache`'s code are served. Signals run on an
/// alternate stack, because rsp is the frame. vCPU thread only; not nested.
class SignalScope {
public:
    SignalScope(translator::CodeCache& cache, const Stubs& stubs);
    ~SignalScope();
    SignalScope(const SignalScope&) = delete;
    SignalScope& operator=(const SignalScope&) = delete;
};

} // namespace doppel::cpu::x86::frontend
