// SPDX-License-Identifier: Apache-2.0
#include "description/cpu_extensions.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <string>

#include <fmt/core.h>

namespace doppel::description {

namespace {

using enum CpuidWord;

constexpr std::uint32_t kExtended = 0x8000'0001;
constexpr Extension kExtensions[] = {
    {"SSE3", 1, Ecx, 0},
    {.name = "PCLMULQDQ", .leaf = 1, .where = Ecx, .bit = 1, .optional = true},
    {"SSSE3", 1, Ecx, 9},
    {"FMA", 1, Ecx, 12},
    {"CMPXCHG16B", 1, Ecx, 13},
    {"SSE4.1", 1, Ecx, 19},
    {"SSE4.2", 1, Ecx, 20},
    {"MOVBE", 1, Ecx, 22},
    {"POPCNT", 1, Ecx, 23},
    {.name = "AES", .leaf = 1, .where = Ecx, .bit = 25, .optional = true},
    {"AVX", 1, Ecx, 28},
    {"F16C", 1, Ecx, 29},
    {.name = "RDRAND", .leaf = 1, .where = Ecx, .bit = 30, .optional = true},
    {"BMI1", 7, Ebx, 3},
    {"AVX2", 7, Ebx, 5},
    {"BMI2", 7, Ebx, 8},
    {.name = "RDSEED", .leaf = 7, .where = Ebx, .bit = 18, .optional = true},
    {.name = "ADX", .leaf = 7, .where = Ebx, .bit = 19, .optional = true},
    {.name = "CLFLUSHOPT", .leaf = 7, .where = Ebx, .bit = 23, .optional = true},
    {"CLWB", 7, Ebx, 24},
    {.name = "SHA", .leaf = 7, .where = Ebx, .bit = 29, .optional = true},
    {"GFNI", 7, Ecx, 8},
    {"VAES", 7, Ecx, 9},
    {"VPCLMULQDQ", 7, Ecx, 10},
    // The translator has it everywhere, KVM where the host has it.
    {.name = "RDPID", .leaf = 7, .where = Ecx, .bit = 22, .always_offered = true, .optional = true},
    {"LZCNT", kExtended, Ecx, 5},
    {"AVX512F", 7, Ebx, 16, false},
    {"AVX512DQ", 7, Ebx, 17, false},
    {"AVX512CD", 7, Ebx, 28, false},
    {"AVX512BW", 7, Ebx, 30, false},
    {"AVX512VL", 7, Ebx, 31, false},
};

std::string lower(std::string_view text) {
    std::string result{text};
    std::ranges::transform(result, result.begin(), [](unsigned char c) { return std::tolower(c); });
    return result;
}

std::uint32_t& word_of(CpuidRegisters& registers, CpuidWord where) {
    switch (where) {
    case Eax: return registers.eax;
    case Ebx: return registers.ebx;
    case Ecx: return registers.ecx;
    case Edx: break;
    }
    return registers.edx;
}

const Extension* find_optional(std::string_view word) {
    const auto found = std::ranges::find_if(kExtensions, [&](const Extension& extension) {
        return extension.optional && "-" + lower(extension.name) == lower(word);
    });
    return found == std::end(kExtensions) ? nullptr : &*found;
}

} // namespace

std::span<const Extension> extensions() { return kExtensions; }

bool has(const CpuidRegisters& registers, const Extension& extension) {
    CpuidRegisters copy = registers;
    return (word_of(copy, extension.where) >> extension.bit & 1) != 0;
}

void take_away(CpuModel& model, const Extension& extension) {
    for (auto& entry : model.cpuid)
        if (entry.leaf == extension.leaf && entry.subleaf == 0 && has(entry.registers, extension)) {
            word_of(entry.registers, extension.where) &= ~(1u << extension.bit);
            model.name += ",-" + lower(extension.name);
        }
}

base::Result<void> take_away(CpuModel& model, std::string_view list) {
    const std::string whole = fmt::format("{},{}", model.name, list);
    for (;;) {
        const std::string_view word = list.substr(0, list.find(','));
        const Extension* const extension = find_optional(word);
        if (extension == nullptr) {
            std::string known;
            for (const auto& one : kExtensions)
                if (one.optional)
                    known += (known.empty() ? "-" : ", -") + lower(one.name);
            return base::fail(base::Errc::InvalidArgument,
                              fmt::format("CPU model '{}': '{}' is no extension that can be taken "
                                          "away",
                                          whole, word),
                              "use " + known);
        }
        take_away(model, *extension);
        if (word.size() == list.size())
            return {};
        list.remove_prefix(word.size() + 1);
    }
}

std::string best_cpu_model(const std::function<bool(const Extension&)>& host_has) {
    const auto runs = [&](const CpuModel& model) {
        return std::ranges::all_of(kExtensions, [&](const Extension& extension) {
            return !has(model.lookup(extension.leaf, 0), extension) ||
                   (extension.is_hosts() ? host_has(extension) : extension.offered);
        });
    };
    std::string best = cpu_models().front().name;
    for (CpuModel model : cpu_models()) {
        for (const auto& extension : kExtensions)
            if (extension.optional && !host_has(extension))
                take_away(model, extension);
        if (runs(model))
            best = model.name;
    }
    return best;
}

} // namespace doppel::description
