// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The file of a saved VM, format 1. Integers are little-endian.
///
///     0            header, one page: Header below, the rest zero
///     ram_offset   RAM, every page at its own place, zero pages are holes (ram_file.hpp)
///     behind it    metadata: SavedVm in the form of state/schema.hpp
///
/// Whatever cuts the file short takes from the metadata, so it is seen; header and metadata have
/// checksums. RAM has none: it could not be mapped, or loaded page by page, any more. A file is
/// foreign when it is read, whatever its name says.
#include <cstdint>
#include <string>

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "vmm/state_file/ram_file.hpp"
#include "vmm/state_file/saved_vm.hpp"

namespace doppel::vmm {

/// A state file in the making: under a temporary name beside `path` until commit(), and gone if
/// that is never reached. One thread at a time.
class StateFileWriter {
public:
    /// Nothing is left behind after an error. Errors: of the host; InvalidArgument when `path` is
    /// a folder or a device.
    static base::Result<StateFileWriter> create(const std::string& path);
    StateFileWriter(StateFileWriter&&) = default;
    StateFileWriter& operator=(StateFileWriter&&) = delete;
    ~StateFileWriter();

    /// For rounds of RamWriter.
    RamWriter ram(const memory::GuestMemory& memory) const;
    /// Writes what is not RAM, makes all of it durable and gives the file its name; what had that
    /// name before is replaced in one step.
    base::Result<void> commit(const SavedVm& vm, std::uint64_t ram_bytes);

private:
    StateFileWriter(base::UniqueFd fd, std::string path, std::string temporary);
    base::UniqueFd fd_;
    std::string path_;
    std::string temporary_; // empty once it has its name
};

/// A state file, header and metadata read and checked.
class StateFile {
public:
    /// `name` is for messages. Errors: NotFound and other errors of the host; Corrupt: no state
    /// file, cut short, damaged; Unsupported: a newer format.
    static base::Result<StateFile> open(const std::string& path);
    static base::Result<StateFile> read(base::UniqueFd fd, const std::string& name);

    const SavedVm& vm() const { return vm_; }
    std::uint64_t ram_bytes() const { return ram_bytes_; }
    int fd() const { return fd_.get(); }
    /// Into memory of exactly ram_bytes(), all zero.
    base::Result<void> load_ram(memory::GuestMemory& memory) const;

private:
    base::UniqueFd fd_;
    std::string name_;
    std::uint64_t ram_offset_ = 0;
    std::uint64_t ram_bytes_ = 0;
    SavedVm vm_;
};

} // namespace doppel::vmm
