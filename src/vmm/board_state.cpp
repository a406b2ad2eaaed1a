// SPDX-License-Identifier: Apache-2.0
#include "vmm/board_state.hpp"

#include <fmt/core.h>

#include "devices/device.hpp"

namespace doppel::vmm {

using base::Errc;
using base::Result;

namespace {

template <typename Part> SavedPart save_part(std::string name, const Part& part) {
    state::Encoder encoder;
    part.save(encoder);
    return {std::move(name), encoder.take()};
}

template <typename Part> Result<void> load_part(const SavedPart& from, Part& part) {
    state::Decoder decoder{from.state};
    if (auto loaded = part.load(decoder); !loaded)
        return std::unexpected(
            std::move(loaded).error().with_context(fmt::format("'{}'", from.name)));
    if (decoder.remaining() != 0)
        return base::fail(Errc::Corrupt, fmt::format("'{}': bytes are left over", from.name));
    return {};
}

std::string vcpu_name(std::size_t index) { return fmt::format("vcpu-{}", index); }

std::vector<std::uint32_t> flat_cpuid(const description::CpuModel& model) {
    std::vector<std::uint32_t> flat;
    for (const auto& entry : model.cpuid)
        flat.insert(flat.end(),
                    {entry.leaf, entry.subleaf, entry.has_subleaves ? 1u : 0u, entry.registers.eax,
                     entry.registers.ebx, entry.registers.ecx, entry.registers.edx});
    return flat;
}

/// A guest keeps what it once read from CPUID, so every bit must be what it was.
Result<void> check_cpuid(const std::vector<std::uint32_t>& saved,
                         const description::CpuModel& model) {
    const auto ours = flat_cpuid(model);
    if (saved == ours)
        return {};
    std::string where;
    for (std::size_t i = 0; where.empty() && i < std::min(saved.size(), ours.size()); ++i)
        if (saved[i] != ours[i])
            where = fmt::format(" (CPUID leaf {:#x})", ours[i / 7 * 7]);
    return base::fail(Errc::Unsupported,
                      fmt::format("the guest's CPU was another '{}' than this host or build offers"
                                  "{}",
                                  model.name, where),
                      "restore it where it was saved, and save VMs that shall move with a named "
                      "CPU model");
}

Result<void> check_names(const std::vector<SavedPart>& saved, const std::vector<std::string>& ours,
                         std::string_view what) {
    if (saved.size() != ours.size())
        return base::fail(Errc::Corrupt, fmt::format("{} {} were saved, the machine has {}",
                                                     saved.size(), what, ours.size()));
    for (std::size_t i = 0; i < ours.size(); ++i)
        if (saved[i].name != ours[i])
            return base::fail(Errc::Corrupt,
                              fmt::format("where the machine has '{}', another of the {} was saved",
                                          ours[i], what));
    return {};
}

} // namespace

void save_board(machine::Pc& board, std::span<cpu::x86::Vcpu* const> vcpus,
                const description::CpuModel& model, SavedVm& to) {
    to.cpuid = flat_cpuid(model);
    for (std::size_t i = 0; i < vcpus.size(); ++i)
        to.vcpus.push_back(save_part(vcpu_name(i), *vcpus[i]));
    for (const auto& [name, chip] : board.chips())
        to.chips.push_back(save_part(name, *chip));
}

Result<void> load_board(const SavedVm& from, const description::CpuModel& model, machine::Pc& board,
                        std::span<cpu::x86::Vcpu* const> vcpus) {
    DOPPEL_TRY_VOID(check_cpuid(from.cpuid, model));
    std::vector<std::string> names;
    for (std::size_t i = 0; i < vcpus.size(); ++i)
        names.push_back(vcpu_name(i));
    DOPPEL_TRY_VOID(check_names(from.vcpus, names, "vCPUs"));
    names.clear();
    const auto chips = board.chips();
    for (const auto& [name, chip] : chips)
        names.push_back(name);
    DOPPEL_TRY_VOID(check_names(from.chips, names, "chips"));
    for (std::size_t i = 0; i < vcpus.size(); ++i)
        DOPPEL_TRY_VOID(load_part(from.vcpus[i], *vcpus[i]));
    for (std::size_t i = 0; i < chips.size(); ++i)
        DOPPEL_TRY_VOID(load_part(from.chips[i], *chips[i].second));
    return {};
}

} // namespace doppel::vmm
