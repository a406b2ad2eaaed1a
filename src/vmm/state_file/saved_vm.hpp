// SPDX-License-Identifier: Apache-2.0
#pragma once
/// All of a saved VM but its RAM: the metadata of a state file. Pure data; any thread.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "state/schema.hpp"

namespace doppel::vmm {

/// The state of one vCPU or chip, as its Savable wrote it.
struct SavedPart {
    std::string name; // unique within the VM
    std::vector<std::byte> state;

    static constexpr auto kSchema =
        state::schema("saved-part", 1, state::field(1, "name", &SavedPart::name),
                      state::field(2, "state", &SavedPart::state));
};

/// All clocks at one moment, that of the pause.
struct SavedClocks {
    std::uint64_t vm_time_ns = 0;   // base::Clock
    std::uint64_t tsc = 0;          // the board's counter, without the vCPUs' own offsets
    std::uint64_t tsc_hz = 0;       // as the guest was told
    std::uint64_t wall_seconds = 0; // the host's calendar: since 1970, UTC
    std::uint32_t wall_nanoseconds = 0;

    base::Result<void> validate() const;
    static constexpr auto kSchema = state::schema(
        "saved-clocks", 1, state::field(1, "vm_time_ns", &SavedClocks::vm_time_ns),
        state::field(2, "tsc", &SavedClocks::tsc), state::field(3, "tsc_hz", &SavedClocks::tsc_hz),
        state::field(4, "wall_seconds", &SavedClocks::wall_seconds),
        state::field(5, "wall_nanoseconds", &SavedClocks::wall_nanoseconds));
};

/// A disk as it was. Disks are not part of the file.
struct SavedDisk {
    std::uint64_t size_bytes = 0; // as the guest sees it
    std::uint64_t changed_ns = 0; // last change of its file: since 1970, UTC; 0: not known
    bool operator==(const SavedDisk&) const = default;
    static constexpr auto kSchema =
        state::schema("saved-disk", 1, state::field(1, "size_bytes", &SavedDisk::size_bytes),
                      state::field(2, "changed_ns", &SavedDisk::changed_ns));
};

struct SavedVm {
    std::string writer;  // for people: the release that wrote the file
    std::string machine; // the machine description, JSON
    /// CPUID of the CPU model, seven numbers per entry: leaf, subleaf, has subleaves, eax … edx. A
    /// guest must not find another CPU when it goes on.
    std::vector<std::uint32_t> cpuid;
    SavedClocks clocks;
    std::vector<SavedPart> vcpus; // in order of their numbers
    std::vector<SavedPart> chips; // in the board's order
    std::vector<SavedDisk> disks; // in the description's order; since version 2

    static constexpr auto kSchema = state::schema(
        "saved-vm", 2, state::field(1, "writer", &SavedVm::writer),
        state::field(2, "machine", &SavedVm::machine), state::field(3, "cpuid", &SavedVm::cpuid),
        state::field(4, "clocks", &SavedVm::clocks), state::field(5, "vcpus", &SavedVm::vcpus),
        state::field(6, "chips", &SavedVm::chips), state::field(7, "disks", &SavedVm::disks, 2));
};

std::vector<std::byte> encode_saved_vm(const SavedVm& vm);
/// The bytes are foreign: every length is checked, what is unknown or left over is an error. What
/// the parts hold is for those to judge whose state it is. Errors: Corrupt, Unsupported.
base::Result<SavedVm> decode_saved_vm(std::span<const std::byte> bytes);

} // namespace doppel::vmm
