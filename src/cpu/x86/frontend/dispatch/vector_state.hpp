// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Who owns the host's vector registers, x87 and MXCSR: the guest, while translated code runs and
/// in the general-registers-only C++ around it; ordinary C++ only after store().
#include "cpu/x86/board_access.hpp"
#include "cpu/x86/cpu_state.hpp"

namespace doppel::cpu::x86::frontend {

/// vCPU thread only.
class VectorState {
public:
    explicit VectorState(XsaveArea& area) : area_{area} {}

    /// Before translated code: the guest's state is in the registers afterwards.
    void load() {
        if (!live_)
            load_slow();
    }
    /// Before ordinary C++: the guest's state is in CpuState, the host's defaults in the registers.
    void store() {
        if (live_)
            store_slow();
    }

private:
    void load_slow();
    void store_slow();

    XsaveArea& area_;
    bool live_ = false;
};

/// BoardAccess for a caller that has guest vectors live.
class VectorSavingBoard final : public BoardAccess {
public:
    /// `board` is ordinary C++.
    VectorSavingBoard(BoardAccess& board, VectorState& vectors)
        : board_{board}, vectors_{vectors} {}

    std::uint64_t mmio_read(std::uint64_t gpa, std::uint8_t size) noexcept override;
    void mmio_write(std::uint64_t gpa, std::uint8_t size, std::uint64_t value) noexcept override;
    std::uint64_t pio_read(std::uint16_t port, std::uint8_t size) noexcept override;
    void pio_write(std::uint16_t port, std::uint8_t size, std::uint64_t value) noexcept override;
    bool prepare_ram_write(std::uint64_t gpa, std::uint64_t bytes) noexcept override;
    void finish_ram_write(std::uint64_t gpa, std::uint64_t bytes) noexcept override;
    void exclusive(void (*work)(void*), void* argument) noexcept override;
    bool read_msr(std::uint32_t index, std::uint64_t& value) noexcept override;
    bool write_msr(std::uint32_t index, std::uint64_t value) noexcept override;
    std::uint8_t cr8() noexcept override;
    void set_cr8(std::uint8_t value) noexcept override;
    bool intr_pending() noexcept override;
    int acknowledge_intr() noexcept override;
    CpuEvent take_event(bool nmi_blocked, bool wait_for_sipi,
                        std::uint8_t& sipi_vector) noexcept override;
    void init_interrupts() noexcept override;
    std::uint64_t tsc() noexcept override;
    bool random(std::uint64_t& value) noexcept override;
    void yield() noexcept override;

private:
    BoardAccess& board_;
    VectorState& vectors_;
};

} // namespace doppel::cpu::x86::frontend
