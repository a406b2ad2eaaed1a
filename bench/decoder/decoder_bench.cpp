// SPDX-License-Identifier: Apache-2.0
/// Time per instruction of the decoder on the .text sections of real programs, beside Zydis's on
/// the same machine at the same time (its minimal mode: no operands). Best of nine rounds each.

#include <Zydis/Zydis.h>
#include <elf.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>
#include <span>
#include <string_view>
#include <vector>

#include "cpu/x86/decoder/decoder.hpp"

using namespace doppel::cpu::x86;

namespace {

template <typename T> T read_at(const std::vector<char>& file, std::size_t offset) {
    T value{};
    if (offset + sizeof value <= file.size())
        std::memcpy(&value, file.data() + offset, sizeof value);
    return value;
}

std::vector<std::uint8_t> text_section(const char* path) {
    std::ifstream stream{path, std::ios::binary};
    const std::vector<char> file{std::istreambuf_iterator<char>{stream}, {}};
    const auto header = read_at<Elf64_Ehdr>(file, 0);
    const auto section = [&](std::size_t index) {
        return read_at<Elf64_Shdr>(file, header.e_shoff + index * sizeof(Elf64_Shdr));
    };
    const auto names = section(header.e_shstrndx);
    for (std::size_t i = 0; i < header.e_shnum; ++i) {
        const auto found = section(i);
        const auto name = names.sh_offset + found.sh_name;
        if (name + 6 <= file.size() && std::memcmp(file.data() + name, ".text", 6) == 0 &&
            found.sh_offset + found.sh_size <= file.size()) {
            const auto* start = file.data() + found.sh_offset;
            return {start, start + found.sh_size};
        }
    }
    return {};
}

/// Nanoseconds per instruction of `decode_one(bytes) -> length`.
template <typename Decode>
double measure(std::span<const std::uint8_t> text, const Decode& decode_one) {
    double best = 1e9;
    for (int round = 0; round < 9; ++round) {
        std::size_t count = 0;
        const auto start = std::chrono::steady_clock::now();
        for (std::size_t at = 0; at + 32 < text.size(); ++count)
            at += decode_one(text.subspan(at));
        const std::chrono::duration<double, std::nano> time =
            std::chrono::steady_clock::now() - start;
        best = std::min(best, time.count() / double(count));
    }
    return best;
}

void measure_file(const char* path) {
    const auto text = text_section(path);
    const double ours = measure(text, [](std::span<const std::uint8_t> bytes) -> std::size_t {
        Instruction in;
        return decode(bytes, CodeSize::Bits64, in) == DecodeStatus::Ok ? in.length : 1u;
    });
    ZydisDecoder zydis;
    ZydisDecoderInit(&zydis, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisDecoderEnableMode(&zydis, ZYDIS_DECODER_MODE_MINIMAL, ZYAN_TRUE);
    const double theirs = measure(text, [&](std::span<const std::uint8_t> bytes) -> std::size_t {
        ZydisDecodedInstruction in;
        const auto status =
            ZydisDecoderDecodeInstruction(&zydis, nullptr, bytes.data(), bytes.size(), &in);
        return ZYAN_SUCCESS(status) ? in.length : 1u;
    });
    fmt::print("{}: {} bytes, decoder {:.1f} ns/instruction, Zydis minimal {:.1f}\n", path,
               text.size(), ours, theirs);
}

} // namespace

int main(int argc, char** argv) {
    if (argc < 2)
        measure_file("/proc/self/exe");
    for (int i = 1; i < argc; ++i)
        measure_file(argv[i]);
    return 0;
}
