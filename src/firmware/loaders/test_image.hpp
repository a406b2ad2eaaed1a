// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Kernel files made by hand for the loaders' tests, and a VM's memory to load them into.
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.hpp"
#include "firmware/loaders/loader.hpp"

namespace doppel::firmware::test {

/// A file under construction; puts grow it.
struct File {
    std::vector<std::byte> bytes;

    explicit File(std::size_t size = 0) : bytes(size) {}
    template <typename T> File& put(std::size_t at, T value) {
        if (bytes.size() < at + sizeof value)
            bytes.resize(at + sizeof value);
        base::store_le(bytes.data() + at, value);
        return *this;
    }
    File& text(std::size_t at, const char* words) {
        for (std::size_t i = 0; words[i] != 0; ++i)
            put(at + i, static_cast<std::uint8_t>(words[i]));
        return *this;
    }
    File& cut(std::size_t size) {
        bytes.resize(size);
        return *this;
    }
};

/// 64 MiB with the hole of a PC below 1 MiB.
struct Vm {
    static constexpr std::uint64_t kRam = 64 << 20;
    std::unique_ptr<memory::GuestMemory> memory;
    std::array<MemoryMapEntry, 3> map{{
        {0, 0x9f000, MemoryMapEntry::Type::Ram},
        {0xf0000, 0x10000, MemoryMapEntry::Type::Reserved},
        {0x100000, kRam - 0x100000, MemoryMapEntry::Type::Ram},
    }};
    std::vector<std::byte> initrd;
    std::string command_line = "console=ttyS0";
    std::vector<MultibootModule> modules;

    Vm() {
        const std::array<memory::RamRegion, 1> regions{{{memory::Gpa{0}, kRam}}};
        memory = std::move(*memory::GuestMemory::create(regions));
    }
    base::Result<BootState> load(const File& file) {
        BootRequest request;
        request.kernel = file.bytes;
        request.initrd = initrd;
        request.kernel_name = "k.elf";
        request.command_line = command_line;
        request.modules = modules;
        request.map = map;
        request.rsdp = 0xe0000;
        return load_kernel(*memory, request);
    }
    std::optional<base::Errc> error_of(const File& file) {
        const auto state = load(file);
        return state ? std::nullopt : std::optional{state.error().code};
    }
    template <typename T> T at(std::uint64_t gpa) const {
        return memory->load<T>(memory::Gpa{gpa}).value_or(T{});
    }
    std::string text_at(std::uint64_t gpa) const {
        std::string text;
        for (char c; (c = at<char>(gpa + text.size())) != 0;)
            text += c;
        return text;
    }
};

} // namespace doppel::firmware::test
