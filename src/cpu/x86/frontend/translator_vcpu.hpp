// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The engine `translator`: a vCPU whose 64-bit code runs as translated code and everything else
/// through the interpreter.
#include <memory>

#include "cpu/x86/board_ports.hpp"
#include "cpu/x86/vcpu.hpp"
#include "description/tuning.hpp"

namespace doppel::cpu::x86 {

namespace frontend {
class World;
}

struct TranslatorOptions {
    description::Tuning tuning{};
    std::string jit_dump{}; // directory for a JitDump; none when empty
    /// Compare every block with the interpreter (slow; differences are logged); needs a meter.
    bool check = false;
    std::uint64_t code_bytes = std::uint64_t{128}
                               << 20; // room of the code cache; backed as it fills
    // --- for tests ---
    std::uint64_t chaos = 0;       // seed of frontend::Chaos, 0: none
    std::uint64_t block_limit = 0; // unlinked blocks after which run() returns
    /// Spoils the host code of each new block: does the checking mode notice?
    void (*spoil)(std::uint8_t* begin, std::uint8_t* end) = nullptr;
};

/// What the vCPUs of one VM share; outlives them.
class TranslatorMachine {
public:
    /// Errors: OutOfMemory, Unsupported (the host lacks BMI1, BMI2 or AVX).
    static base::Result<std::unique_ptr<TranslatorMachine>> create(memory::GuestMemory& memory,
                                                                   TranslatorOptions options = {});
    ~TranslatorMachine();

private:
    friend class TranslatorVcpu;
    TranslatorMachine(std::unique_ptr<frontend::World> world, TranslatorOptions options);
    std::unique_ptr<frontend::World> world_;
    TranslatorOptions options_;
};

/// vCPU thread only, except kick() and notify().
class TranslatorVcpu final : public Vcpu {
public:
    /// What `wiring` names, and `machine`, outlive the vCPU. As after RESET; vCPU 0 is the
    /// bootstrap processor, the others wait for a SIPI.
    static base::Result<std::unique_ptr<TranslatorVcpu>>
    create(TranslatorMachine& machine, const VcpuWiring& wiring, unsigned vcpu_count);
    ~TranslatorVcpu() override;

    std::string_view engine_name() const override { return "translator"; }
    VmExit run() override;
    void kick() noexcept override;
    void notify() noexcept override;
    void reset() override;
    void save(state::Encoder& to) const override;
    base::Result<void> load(state::Decoder& from) override;
    VcpuStats stats() const override;
    CpuState& state() override;
    void state_changed() override;
    void drop_write_permissions() override;
    const EventLog* events() const override;
    GuestPlace place(const void* host_pc) noexcept override;
    /// With TranslatorOptions::check: blocks compared, and those that differed.
    std::uint64_t blocks_checked() const;
    std::uint64_t blocks_different() const;

private:
    struct Parts;
    explicit TranslatorVcpu(std::unique_ptr<Parts> parts);

    std::unique_ptr<Parts> parts_;
    VcpuStats counts_;
};

} // namespace doppel::cpu::x86
