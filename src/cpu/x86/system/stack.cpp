// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/stack.hpp"

#include "cpu/x86/system/linear_memory.hpp"
#include "cpu/x86/system/segment_access.hpp"
#include "cpu/x86/system/segment_check.hpp"

namespace doppel::cpu::x86 {

Privilege privilege_at(const SystemContext& cx, unsigned cpl) {
    if (cpl == 3)
        return Privilege::User;
    return (cx.state.rflags & FLAG_AC) != 0 ? Privilege::SupervisorAc : Privilege::Supervisor;
}

Stack Stack::current(SystemContext& cx) {
    return {cx, cx.state.segment[Ss], cx.state.gpr[Rsp], stack_width(cx), data_privilege(cx), 0};
}

std::uint64_t Stack::moved(std::uint64_t by) const {
    const std::uint64_t next = (pointer_ + by) & mask();
    return width_ == 2 ? (pointer_ & ~mask()) | next : next;
}

bool Stack::locate(std::uint64_t pointer, std::uint32_t bytes, AccessType access,
                   std::uint64_t& linear) {
    if (width_ == 8) {
        linear = pointer;
        return (is_canonical(linear) && is_canonical(linear + bytes - 1)) ||
               cx_.raise(Vector::SS, error_code_);
    }
    const std::uint64_t offset = pointer & mask();
    linear = (segment_.base + offset) & 0xffff'ffff;
    const bool typed = !cx_.real_or_v86();
    return ((!typed || type_allows(segment_, access)) && limit_allows(segment_, offset, bytes)) ||
           cx_.raise(Vector::SS, error_code_);
}

bool Stack::push(std::uint64_t value, std::uint32_t bytes) {
    const std::uint64_t next = moved(0 - std::uint64_t{bytes});
    std::uint64_t linear = 0;
    if (!locate(next, bytes, AccessType::Write, linear) ||
        !write_linear(cx_, linear, &value, bytes, privilege_))
        return false;
    pointer_ = next;
    return true;
}

bool Stack::peek(std::uint64_t displacement, std::uint64_t& value, std::uint32_t bytes) {
    std::uint64_t linear = 0;
    value = 0;
    return locate(moved(displacement), bytes, AccessType::Read, linear) &&
           read_linear(cx_, linear, &value, bytes, privilege_);
}

bool Stack::pop(std::uint64_t& value, std::uint32_t bytes) {
    if (!peek(0, value, bytes))
        return false;
    pointer_ = moved(bytes);
    return true;
}

} // namespace doppel::cpu::x86
