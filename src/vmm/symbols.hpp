// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Names of guest addresses, from the text files that Linux has of its own: System.map,
/// /proc/kallsyms, or what `nm` prints. Any thread once filled.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace doppel::vmm {

class Symbols {
public:
    /// Lines "ADDRESS TYPE NAME [MODULE]"; what is no code is left out. Errors: InvalidArgument
    /// when there is none, or all addresses are 0 (a kallsyms that was not read as root).
    base::Result<void> add(std::string_view text);
    /// The kernel runs where its symbol entry_SYSCALL_64 is at this address (its LSTAR), which is
    /// elsewhere than its System.map says when it is randomized. 0: not known.
    void place_kernel(std::uint64_t syscall_entry);
    /// "NAME", "NAME [MODULE]"; empty: nobody knows.
    std::string_view name_of(std::uint64_t address) const;
    bool empty() const { return symbols_.empty(); }

private:
    struct Symbol {
        std::uint64_t address = 0;
        std::string name;
    };
    std::vector<Symbol> symbols_; // ascending
    std::uint64_t slide_ = 0;     // of kernel addresses
};

} // namespace doppel::vmm
