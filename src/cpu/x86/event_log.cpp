// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/event_log.hpp"

#include <fmt/core.h>

namespace doppel::cpu::x86 {

std::string exception_name(std::uint8_t vector) {
    static constexpr std::array<const char*, 22> kNames{
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "",    "#TS",
        "#NP", "#SS", "#GP", "#PF", "",    "#MF", "#AC", "#MC", "#XM", "#VE", "#CP"};
    return vector < kNames.size() ? kNames.at(vector) : "";
}

namespace {

std::string name_of(const TakenEvent& event) {
    using Kind = TakenEvent::Kind;
    switch (event.kind) {
    case Kind::Exception: return exception_name(event.vector);
    case Kind::Interrupt: return fmt::format("interrupt {:#04x}", event.vector);
    case Kind::Nmi: return "NMI";
    case Kind::Software: return fmt::format("software interrupt {:#04x}", event.vector);
    case Kind::Init: return "INIT";
    case Kind::StartUp: return fmt::format("start-up to page {:#04x}", event.vector);
    }
    return {};
}

} // namespace

std::string describe(const TakenEvent& event) {
    std::string out = name_of(event);
    if (event.has_error_code)
        out += fmt::format(" error {:04x}", event.error_code);
    out += fmt::format(" at rip {:x}", event.rip);
    if (event.kind == TakenEvent::Kind::Exception &&
        event.vector == static_cast<std::uint8_t>(Vector::PF))
        out += fmt::format(", address {:x}", event.cr2);
    return out;
}

} // namespace doppel::cpu::x86
