// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Whether this host's KVM runs kernels (cpu/kvm/self_test.hpp), asked once per boot of the host:
/// the self-test runs in a child that is killed when it hangs, and its verdict is kept in
/// $XDG_CACHE_HOME/doppel (~/.cache/doppel).
#include <chrono>
#include <string>
#include <vector>

namespace doppel::vmm {

struct KvmVerdict {
    bool runs_kernels = false;
    std::string
        reason; // why not, for a sentence that begins "this host's KVM does not run kernels: "
};

struct KvmVerdictSource {
    /// Prints the verdict's line, kvm_self_test_line().
    std::vector<std::string> command{"/proc/self/exe", "--kvm-self-test"};
    std::string cache_file; // empty: not kept
    std::string key;        // a kept verdict with another one is void
    std::chrono::milliseconds patience{10'000};
};

/// What doppel-vmm uses: the verdict holds for this boot, kernel and set of kvm modules.
KvmVerdictSource default_verdict_source();
/// Control thread. Never fails: what cannot be asked is a "no" with its reason.
KvmVerdict kvm_verdict(const KvmVerdictSource& source = default_verdict_source());

/// Runs the self-test here and now; its line for the parent: "good" or "bad REASON".
std::string kvm_self_test_line();

} // namespace doppel::vmm
