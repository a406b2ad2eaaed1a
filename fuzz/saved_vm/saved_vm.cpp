// SPDX-License-Identifier: Apache-2.0
/// A state file is foreign bytes. First input byte even: the rest is the metadata, which is refused
/// or encodes to the same meaning again. Odd: the rest is a whole file, of which the header is
/// given its checksum, so that the checks behind that are reached; it is refused or loads.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/bytes.hpp"
#include "base/crc32c.hpp"
#include "vmm/state_file/state_file.hpp"

using namespace doppel;

namespace {

void check_metadata(std::span<const std::byte> bytes) {
    const auto vm = vmm::decode_saved_vm(bytes);
    if (!vm)
        return;
    const auto first = vmm::encode_saved_vm(*vm);
    const auto again = vmm::decode_saved_vm(first);
    if (!again || vmm::encode_saved_vm(*again) != first)
        std::abort();
}

void check_file(std::vector<std::byte> bytes) {
    constexpr std::size_t kHeaderBytes = 4096, kAtChecksum = 12;
    if (bytes.size() >= kHeaderBytes) {
        base::store_le(&bytes[kAtChecksum], std::uint32_t{0});
        base::store_le(&bytes[kAtChecksum], base::crc32c(std::span{bytes}.first(kHeaderBytes)));
    }
    base::UniqueFd fd{::memfd_create("fuzz", MFD_CLOEXEC)};
    if (::write(fd.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()))
        std::abort();
    const auto file = vmm::StateFile::read(std::move(fd), "fuzz");
    if (!file || file->ram_bytes() == 0 || file->ram_bytes() > 1u << 20)
        return;
    const memory::RamRegion region{{0}, file->ram_bytes()};
    auto memory = memory::GuestMemory::create({&region, 1}).value();
    if (!file->load_ram(*memory))
        std::abort(); // a file of the right length can be read
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0)
        return 0;
    const std::span bytes{reinterpret_cast<const std::byte*>(data + 1), size - 1};
    if (data[0] % 2 == 0)
        check_metadata(bytes);
    else
        check_file({bytes.begin(), bytes.end()});
    return 0;
}
