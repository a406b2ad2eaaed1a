// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/host_signals.hpp"

#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <mutex>

namespace doppel::cpu::x86::frontend {

using translator::Block;
using translator::CodeCache;
using translator::SignalSite;

namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};
struct sigaction g_previous[std::size(kSignals)];
std::mutex g_mutex; // of g_previous

thread_local CodeCache* t_cache = nullptr;
thread_local const Stubs* t_stubs = nullptr;

/// The thread's alternate stack, unless it has one already.
class AlternateStack {
public:
    AlternateStack() : memory_{new char[kBytes]} {
        stack_t old{};
        ::sigaltstack(nullptr, &old);
        if ((old.ss_flags & SS_DISABLE) == 0)
            return;
        stack_t mine{};
        mine.ss_sp = memory_.get();
        mine.ss_size = kBytes;
        ::sigaltstack(&mine, nullptr);
        installed_ = true;
    }
    ~AlternateStack() {
        if (!installed_)
            return;
        stack_t none{};
        none.ss_flags = SS_DISABLE;
        ::sigaltstack(&none, nullptr);
    }

private:
    static constexpr std::size_t kBytes = 64 * 1024;
    std::unique_ptr<char[]> memory_;
    bool installed_ = false;
};

const SignalSite* find_site(const CodeCache& cache, const Block& block, const std::uint8_t* at) {
    const auto offset = static_cast<std::uint32_t>(at - block.begin);
    for (const SignalSite& site : cache.signal_sites(block))
        if (site.host_offset == offset)
            return &site;
    return nullptr;
}

/// True when the context now leads to an exit stub.
bool redirect(ucontext_t& context) {
    auto& registers = context.uc_mcontext.gregs;
    const auto* const at = reinterpret_cast<const std::uint8_t*>(registers[REG_RIP]);
    if (t_cache == nullptr || !t_cache->memory().contains(at))
        return false;
    const base::MutexLock lock{t_cache->mutex()};
    const Block* const block = t_cache->find_by_host(at);
    const SignalSite* const site = block == nullptr ? nullptr : find_site(*t_cache, *block, at);
    if (site == nullptr)
        return false;
    registers[REG_R13] = site->page_offset | (site->is_poll ? 0x1000 : 0) | site->left << 16;
    registers[REG_RIP] = reinterpret_cast<greg_t>(
        t_stubs->exit(Exit::HostFault, site->flags_made      ? FlagPlace::Made
                                       : site->flags_in_slot ? FlagPlace::Slot
                                                             : FlagPlace::Register));
    return true;
}

void on_signal(int signal, siginfo_t* info, void* context) {
    if (redirect(*static_cast<ucontext_t*>(context)))
        return;
    for (std::size_t i = 0; i < std::size(kSignals); ++i) {
        if (kSignals[i] != signal)
            continue;
        const struct sigaction& old = g_previous[i];
        if ((old.sa_flags & SA_SIGINFO) != 0)
            return old.sa_sigaction(signal, info, context);
        if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN)
            return old.sa_handler(signal);
    }
    ::signal(signal, SIG_DFL); // the instruction is executed again, and kills us
}

/// Others (a test framework, for one) may have put theirs in place of ours since the last time.
void install() {
    struct sigaction current{};
    ::sigaction(SIGSEGV, nullptr, &current);
    if (current.sa_sigaction == on_signal)
        return;
    const std::scoped_lock lock{g_mutex};
    struct sigaction action{};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (std::size_t i = 0; i < std::size(kSignals); ++i)
        if (struct sigaction old{};
            ::sigaction(kSignals[i], &action, &old) == 0 && old.sa_sigaction != on_signal)
            g_previous[i] = old;
}

} // namespace

SignalScope::SignalScope(CodeCache& cache, const Stubs& stubs) {
    thread_local const AlternateStack stack;
    install();
    t_cache = &cache;
    t_stubs = &stubs;
}

SignalScope::~SignalScope() {
    t_cache = nullptr;
    t_stubs = nullptr;
}

} // namespace doppel::cpu::x86::frontend
