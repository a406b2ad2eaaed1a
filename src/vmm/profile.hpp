// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Where the guest spends its CPU time: a timer of each vCPU thread's CPU time sends it a signal,
/// whose handler notes the guest's RIP. A halted vCPU uses no time, so it is not seen.
///
/// The result is text that flame graph tools read ("folded stacks"): `kernel;NAME COUNT`,
/// `user;cr3=ADDRESS;NAME COUNT`.
#include <memory>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "cpu/x86/vcpu.hpp"
#include "vmm/symbols.hpp"

namespace doppel::vmm {

class Profile {
public:
    static constexpr long kSamplesPerSecond = 997; // no multiple of a guest's tick

    /// Opens `path` for the result, reads the files of `symbols`. Errors: those of the files;
    /// InvalidArgument when one names nothing.
    static base::Result<std::unique_ptr<Profile>>
    create(const std::string& path, const std::vector<std::string>& symbols, unsigned vcpus);
    ~Profile();

    /// Samples the calling thread, which runs `vcpu`, until end(). The thread's own.
    void begin(unsigned index, cpu::x86::Vcpu& vcpu);
    void end(unsigned index);

    /// No vCPU runs. `syscall_entry`: LSTAR, see Symbols.
    base::Result<void> write(std::uint64_t syscall_entry);
    std::string text(std::uint64_t syscall_entry);

private:
    class Sampler;
    Profile(std::string path, base::UniqueFd file, Symbols symbols, unsigned vcpus);

    std::string path_;
    base::UniqueFd file_;
    Symbols symbols_;
    std::vector<std::unique_ptr<Sampler>> samplers_; // of the vCPUs
};

} // namespace doppel::vmm
