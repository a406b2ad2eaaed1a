// SPDX-License-Identifier: Apache-2.0
#include "vmm/symbols.hpp"

#include <algorithm>
#include <charconv>

namespace doppel::vmm {

namespace {

constexpr std::uint64_t kKernelHalf = 0x8000'0000'0000'0000;
/// Behind the last symbol of a part there is nothing that it names.
constexpr std::uint64_t kLongest = 0x10'0000;

std::string_view take_word(std::string_view& line) {
    const std::size_t begin = std::min(line.find_first_not_of(" \t"), line.size());
    const std::size_t end = std::min(line.find_first_of(" \t\r", begin), line.size());
    const auto word = line.substr(begin, end - begin);
    line.remove_prefix(end);
    return word;
}

bool is_code(std::string_view type) {
    return type.size() == 1 && std::string_view{"tTwW"}.find(type[0]) != std::string_view::npos;
}

} // namespace

base::Result<void> Symbols::add(std::string_view text) {
    std::size_t found = 0;
    std::size_t nowhere = 0;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find('\n'), text.size());
        auto line = text.substr(0, end);
        text.remove_prefix(std::min(end + 1, text.size()));
        const auto address = take_word(line);
        const auto type = take_word(line);
        const auto name = take_word(line);
        const auto module = take_word(line);
        Symbol symbol;
        const auto [stop, error] =
            std::from_chars(address.data(), address.data() + address.size(), symbol.address, 16);
        if (error != std::errc{} || stop != address.data() + address.size() || !is_code(type) ||
            name.empty())
            continue;
        ++found;
        nowhere += symbol.address == 0 ? 1 : 0;
        symbol.name = name;
        if (!module.empty())
            symbol.name.append(" ").append(module);
        if (symbol.address != 0)
            symbols_.push_back(std::move(symbol));
    }
    if (found == 0)
        return base::fail(base::Errc::InvalidArgument, "it has no lines 'ADDRESS t NAME'",
                          "give a System.map, a guest's /proc/kallsyms or the output of nm");
    if (found == nowhere)
        return base::fail(base::Errc::InvalidArgument, "all its addresses are 0",
                          "read /proc/kallsyms as root, with kernel.kptr_restrict below 2");
    std::ranges::stable_sort(symbols_, {}, &Symbol::address);
    return {};
}

void Symbols::place_kernel(std::uint64_t syscall_entry) {
    const auto entry = std::ranges::find(symbols_, "entry_SYSCALL_64", &Symbol::name);
    if (entry != symbols_.end() && syscall_entry >= kKernelHalf)
        slide_ = syscall_entry - entry->address;
}

std::string_view Symbols::name_of(std::uint64_t address) const {
    if (address >= kKernelHalf)
        address -= slide_;
    const auto after = std::ranges::upper_bound(symbols_, address, {}, &Symbol::address);
    if (after == symbols_.begin() || address - (after - 1)->address > kLongest)
        return {};
    return (after - 1)->name;
}

} // namespace doppel::vmm
