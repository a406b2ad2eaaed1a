// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A stack that is being pushed to or popped from before anything is committed: the current one, or
/// that of a new privilege level or task.
#include "cpu/x86/system/context.hpp"
#include "cpu/x86/system/paging.hpp"

namespace doppel::cpu::x86 {

class Stack {
public:
    /// `width` 8, 4 or 2: how much of the pointer counts. `error_code` goes with #SS.
    Stack(SystemContext& cx, const Segment& segment, std::uint64_t pointer, std::uint32_t width,
          Privilege privilege, std::uint32_t error_code)
        : cx_{cx}, segment_{segment}, pointer_{pointer}, width_{width}, privilege_{privilege},
          error_code_{error_code} {}

    /// The stack the current instruction uses.
    static Stack current(SystemContext& cx);

    [[nodiscard]] bool push(std::uint64_t value, std::uint32_t bytes);
    [[nodiscard]] bool pop(std::uint64_t& value, std::uint32_t bytes);
    /// Reads above the pointer without moving it.
    [[nodiscard]] bool peek(std::uint64_t displacement, std::uint64_t& value, std::uint32_t bytes);
    void release(std::uint64_t bytes) { pointer_ = moved(bytes); }

    /// The whole register: bits above the width are those it began with.
    std::uint64_t pointer() const { return pointer_; }
    void set_error_code(std::uint32_t code) { error_code_ = code; }

private:
    std::uint64_t mask() const {
        return width_ == 8 ? ~0ull : width_ == 4 ? 0xffff'ffffull : 0xffff;
    }
    std::uint64_t moved(std::uint64_t by) const;
    [[nodiscard]] bool locate(std::uint64_t pointer, std::uint32_t bytes, AccessType access,
                              std::uint64_t& linear);

    SystemContext& cx_;
    const Segment& segment_;
    std::uint64_t pointer_;
    std::uint32_t width_;
    Privilege privilege_;
    std::uint32_t error_code_;
};

/// Privilege of explicit accesses at `cpl`.
Privilege privilege_at(const SystemContext& cx, unsigned cpl);

} // namespace doppel::cpu::x86
