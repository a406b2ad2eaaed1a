// SPDX-License-Identifier: Apache-2.0
/// First byte: the code size; then an instruction, decoded by us and by Zydis. Also: no byte behind
/// the instruction may matter, and each cut of it must ask for more.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/x86/disassembler/zydis_compare.hpp"

using namespace doppel::cpu::x86;

namespace {

[[noreturn]] void fail(const char* what, const std::string& detail) {
    std::fprintf(stderr, "%s: %s\n", what, detail.c_str());
    std::abort();
}

void check_cuts(std::span<const std::uint8_t> bytes, CodeSize code_size) {
    Instruction whole;
    if (decode(bytes, code_size, whole) != DecodeStatus::Ok)
        return;
    for (std::size_t size = 0; size <= whole.length; ++size) {
        // A copy of its own, so that AddressSanitizer sees a read beyond the cut.
        const std::vector<std::uint8_t> cut(bytes.begin(), bytes.begin() + std::ptrdiff_t(size));
        Instruction part;
        const auto status = decode(cut, code_size, part);
        const auto expected = size == whole.length ? DecodeStatus::Ok : DecodeStatus::NeedMoreBytes;
        if (status != expected)
            fail("cut", std::to_string(size) + " of " + std::to_string(whole.length) + " bytes");
    }
}

} // namespace

// NOLINTNEXTLINE(readability-identifier-naming): the name is the fuzzer's.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size < 2)
        return 0;
    const auto code_size = CodeSize(data[0] % 3);
    const std::span bytes{data + 1, size - 1};
    const auto found = compare_with_zydis(bytes, code_size);
    if (!found.field.empty())
        fail(found.field.c_str(), found.detail);
    check_cuts(bytes, code_size);
    return 0;
}
