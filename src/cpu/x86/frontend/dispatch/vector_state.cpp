// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/frontend/dispatch/vector_state.hpp"

namespace doppel::cpu::x86::frontend {

namespace {

constexpr std::uint32_t kMxcsrDefault = 0x1f80;

/// FOP, FIP and FDP of the legacy region (Intel SDM Vol. 1 §10.5.1) are the guest's, never the
/// addresses of our instructions. While the registers are live FIP's offset in its page lies where
/// the tag word is otherwise: a block notes its page once (emit_x87.cpp).
constexpr std::size_t kTagWord = 4, kFop = 6, kFip = 8, kFdp = 16;

std::uint64_t take(const std::byte* from, std::size_t bytes) {
    std::uint64_t value = 0;
    __builtin_memcpy(&value, from, bytes);
    return value;
}

void split_fip(std::byte* area) {
    constexpr std::uint64_t kOffset = 0xfff;
    const std::uint64_t fip = take(area + kFip, 8), page = fip & ~kOffset, offset = fip & kOffset;
    __builtin_memcpy(area + kFip, &page, 8);
    __builtin_memcpy(area + kTagWord, &offset, 2);
}

} // namespace

void VectorState::load_slow() {
    asm volatile("xrstor64 %0" : : "m"(area_), "a"(7), "d"(0));
    split_fip(area_.bytes.data());
    live_ = true;
}

void VectorState::store_slow() {
    std::byte* const bytes = area_.bytes.data();
    const std::uint64_t fip = take(bytes + kFip, 8) + take(bytes + kTagWord, 2);
    const std::uint64_t fop = take(bytes + kFop, 2), fdp = take(bytes + kFdp, 8);
    asm volatile("xsave64 %0" : "+m"(area_) : "a"(7), "d"(0));
    __builtin_memcpy(bytes + kFop, &fop, 2);
    __builtin_memcpy(bytes + kFip, &fip, 8);
    __builtin_memcpy(bytes + kFdp, &fdp, 8);
    asm volatile("fninit\n\tldmxcsr %0\n\tvzeroupper" : : "m"(kMxcsrDefault));
    live_ = false;
}

std::uint64_t VectorSavingBoard::mmio_read(std::uint64_t gpa, std::uint8_t size) noexcept {
    vectors_.store();
    return board_.mmio_read(gpa, size);
}

void VectorSavingBoard::mmio_write(std::uint64_t gpa, std::uint8_t size,
                                   std::uint64_t value) noexcept {
    vectors_.store();
    board_.mmio_write(gpa, size, value);
}

std::uint64_t VectorSavingBoard::pio_read(std::uint16_t port, std::uint8_t size) noexcept {
    vectors_.store();
    return board_.pio_read(port, size);
}

void VectorSavingBoard::pio_write(std::uint16_t port, std::uint8_t size,
                                  std::uint64_t value) noexcept {
    vectors_.store();
    board_.pio_write(port, size, value);
}

bool VectorSavingBoard::prepare_ram_write(std::uint64_t gpa, std::uint64_t bytes) noexcept {
    vectors_.store();
    return board_.prepare_ram_write(gpa, bytes);
}

void VectorSavingBoard::finish_ram_write(std::uint64_t gpa, std::uint64_t bytes) noexcept {
    vectors_.store();
    board_.finish_ram_write(gpa, bytes);
}

void VectorSavingBoard::exclusive(void (*work)(void*), void* argument) noexcept {
    vectors_.store();
    board_.exclusive(work, argument);
}

bool VectorSavingBoard::read_msr(std::uint32_t index, std::uint64_t& value) noexcept {
    vectors_.store();
    return board_.read_msr(index, value);
}

bool VectorSavingBoard::write_msr(std::uint32_t index, std::uint64_t value) noexcept {
    vectors_.store();
    return board_.write_msr(index, value);
}

std::uint8_t VectorSavingBoard::cr8() noexcept {
    vectors_.store();
    return board_.cr8();
}

void VectorSavingBoard::set_cr8(std::uint8_t value) noexcept {
    vectors_.store();
    board_.set_cr8(value);
}

bool VectorSavingBoard::intr_pending() noexcept {
    vectors_.store();
    return board_.intr_pending();
}

int VectorSavingBoard::acknowledge_intr() noexcept {
    vectors_.store();
    return board_.acknowledge_intr();
}

CpuEvent VectorSavingBoard::take_event(bool nmi_blocked, bool wait_for_sipi,
                                       std::uint8_t& sipi_vector) noexcept {
    vectors_.store();
    return board_.take_event(nmi_blocked, wait_for_sipi, sipi_vector);
}

void VectorSavingBoard::init_interrupts() noexcept {
    vectors_.store();
    board_.init_interrupts();
}

std::uint64_t VectorSavingBoard::tsc() noexcept {
    vectors_.store();
    return board_.tsc();
}

bool VectorSavingBoard::random(std::uint64_t& value) noexcept {
    vectors_.store();
    return board_.random(value);
}

void VectorSavingBoard::yield() noexcept {
    vectors_.store();
    board_.yield();
}

} // namespace doppel::cpu::x86::frontend
