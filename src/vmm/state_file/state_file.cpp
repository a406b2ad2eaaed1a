// SPDX-License-Identifier: Apache-2.0
#include "vmm/state_file/state_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "base/crc32c.hpp"

namespace doppel::vmm {

using base::Errc;
using base::Result;

namespace {

constexpr std::string_view kMagic = "DOPPELVM";
constexpr std::uint32_t kFormat = 1;
constexpr std::size_t kHeaderBytes = 4096;
constexpr std::uint64_t kRamOffset = 2u << 20; // a huge page could be mapped from here
constexpr std::uint64_t kMaxMetadataBytes = 64u << 20;
constexpr std::uint64_t kMaxRamBytes = 1ull << 44;

// Places in the header.
constexpr std::size_t kAtFormat = 8, kAtChecksum = 12, kAtRamOffset = 16, kAtRamBytes = 24,
                      kAtMetadata = 32, kAtMetadataBytes = 40, kAtMetadataChecksum = 48;

using HeaderBytes = std::array<std::byte, kHeaderBytes>;

struct Header {
    std::uint64_t ram_offset = 0, ram_bytes = 0;
    std::uint64_t metadata_offset = 0, metadata_bytes = 0;
    std::uint32_t metadata_checksum = 0;
};

HeaderBytes encode_header(const Header& header) {
    HeaderBytes bytes{};
    std::memcpy(bytes.data(), kMagic.data(), kMagic.size());
    base::store_le(&bytes[kAtFormat], kFormat);
    base::store_le(&bytes[kAtRamOffset], header.ram_offset);
    base::store_le(&bytes[kAtRamBytes], header.ram_bytes);
    base::store_le(&bytes[kAtMetadata], header.metadata_offset);
    base::store_le(&bytes[kAtMetadataBytes], header.metadata_bytes);
    base::store_le(&bytes[kAtMetadataChecksum], header.metadata_checksum);
    base::store_le(&bytes[kAtChecksum], base::crc32c(bytes));
    return bytes;
}

std::unexpected<base::Error> damaged(std::string_view what) {
    return base::fail(Errc::Corrupt, std::string{what}, "the file is damaged; save the VM again");
}

Result<Header> decode_header(HeaderBytes bytes, std::uint64_t file_bytes) {
    if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0)
        return base::fail(Errc::Corrupt, "this is not a saved VM of Doppel",
                          "give a file that 'doppel save' has written");
    const auto format = base::load_le<std::uint32_t>(&bytes[kAtFormat]);
    if (format != kFormat)
        return base::fail(Errc::Unsupported,
                          fmt::format("the format is {}, this build reads {}", format, kFormat),
                          "use the release that wrote it, or a newer one");
    const auto checksum = base::load_le<std::uint32_t>(&bytes[kAtChecksum]);
    base::store_le(&bytes[kAtChecksum], std::uint32_t{0});
    if (checksum != base::crc32c(bytes))
        return damaged("the header's checksum is wrong");
    const Header header{base::load_le<std::uint64_t>(&bytes[kAtRamOffset]),
                        base::load_le<std::uint64_t>(&bytes[kAtRamBytes]),
                        base::load_le<std::uint64_t>(&bytes[kAtMetadata]),
                        base::load_le<std::uint64_t>(&bytes[kAtMetadataBytes]),
                        base::load_le<std::uint32_t>(&bytes[kAtMetadataChecksum])};
    const bool is_possible = header.ram_offset == kRamOffset && header.ram_bytes <= kMaxRamBytes &&
                             header.ram_bytes % memory::kPageBytes == 0 &&
                             header.metadata_offset == header.ram_offset + header.ram_bytes &&
                             header.metadata_bytes <= kMaxMetadataBytes;
    if (!is_possible)
        return damaged("the header names places that cannot be");
    if (file_bytes != header.metadata_offset + header.metadata_bytes)
        return damaged(fmt::format("the file has {} bytes instead of {}", file_bytes,
                                   header.metadata_offset + header.metadata_bytes));
    return header;
}

Result<void> read_at(int fd, std::uint64_t offset, std::span<std::byte> bytes) {
    for (std::size_t done = 0; done < bytes.size();) {
        const auto n = ::pread(fd, bytes.data() + done, bytes.size() - done,
                               static_cast<off_t>(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return base::fail_errno(errno, "read the file");
        if (n == 0)
            return damaged("the file ends early");
        done += static_cast<std::size_t>(n);
    }
    return {};
}

Result<void> write_at(int fd, std::uint64_t offset, std::span<const std::byte> bytes) {
    for (std::size_t done = 0; done < bytes.size();) {
        const auto n = ::pwrite(fd, bytes.data() + done, bytes.size() - done,
                                static_cast<off_t>(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return base::fail_errno(errno, "write the file");
        done += static_cast<std::size_t>(n);
    }
    return {};
}

/// So that the new name, too, survives a crash of the host.
Result<void> sync_folder_of(const std::string& path) {
    const auto slash = path.rfind('/');
    const auto folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    const base::UniqueFd fd{::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (!fd || ::fsync(fd.get()) != 0)
        return base::fail_errno(errno, fmt::format("make folder '{}' durable", folder));
    return {};
}

} // namespace

// --- writing ----------------------------------------------------------------------------------

StateFileWriter::StateFileWriter(base::UniqueFd fd, std::string path, std::string temporary)
    : fd_{std::move(fd)}, path_{std::move(path)}, temporary_{std::move(temporary)} {}

StateFileWriter::~StateFileWriter() {
    if (fd_ && !temporary_.empty())
        ::unlink(temporary_.c_str());
}

Result<StateFileWriter> StateFileWriter::create(const std::string& path) {
    struct stat info{};
    if (path.empty() || path.back() == '/' ||
        (::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)))
        return base::fail(Errc::InvalidArgument,
                          fmt::format("'{}' is not the name of a file", path),
                          "give the file to save to");
    auto temporary = path + ".XXXXXX";
    base::UniqueFd fd{::mkostemp(temporary.data(), O_CLOEXEC)}; // mode 0600: RAM holds secrets
    if (!fd)
        return base::fail_errno(errno, fmt::format("create a file beside '{}'", path));
    return StateFileWriter{std::move(fd), path, std::move(temporary)};
}

RamWriter StateFileWriter::ram(const memory::GuestMemory& memory) const {
    return RamWriter{memory, fd_.get(), kRamOffset};
}

Result<void> StateFileWriter::commit(const SavedVm& vm, std::uint64_t ram_bytes) {
    const auto metadata = encode_saved_vm(vm);
    const Header header{kRamOffset, ram_bytes, kRamOffset + ram_bytes, metadata.size(),
                        base::crc32c(metadata)};
    DOPPEL_TRY_VOID(write_at(fd_.get(), header.metadata_offset, metadata));
    DOPPEL_TRY_VOID(write_at(fd_.get(), 0, encode_header(header)));
    if (::fsync(fd_.get()) != 0)
        return base::fail_errno(errno, fmt::format("make '{}' durable", path_));
    if (::rename(temporary_.c_str(), path_.c_str()) != 0)
        return base::fail_errno(errno, fmt::format("rename to '{}'", path_));
    temporary_.clear();
    return sync_folder_of(path_);
}

// --- reading ----------------------------------------------------------------------------------

Result<StateFile> StateFile::open(const std::string& path) {
    base::UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!fd)
        return base::fail_errno(errno, fmt::format("cannot open state file '{}'", path));
    return read(std::move(fd), path);
}

Result<StateFile> StateFile::read(base::UniqueFd fd, const std::string& name) {
    const auto context = fmt::format("state file '{}'", name);
    const auto explain = [&](base::Error error) {
        return std::unexpected(std::move(error).with_context(context));
    };
    struct stat info{};
    if (::fstat(fd.get(), &info) != 0)
        return base::fail_errno(errno, context);
    if (!S_ISREG(info.st_mode))
        return base::fail(Errc::InvalidArgument, context + " is not a regular file",
                          "give a file that 'doppel save' has written");
    const auto file_bytes = static_cast<std::uint64_t>(info.st_size);
    HeaderBytes bytes{};
    if (file_bytes < bytes.size())
        return base::fail(Errc::Corrupt,
                          context + ": this is not a saved VM of Doppel, or it is "
                                    "cut short",
                          "give a file that 'doppel save' has written");
    if (auto done = read_at(fd.get(), 0, bytes); !done)
        return explain(std::move(done).error());
    const auto header = decode_header(bytes, file_bytes);
    if (!header)
        return explain(header.error());
    std::vector<std::byte> metadata(header->metadata_bytes);
    if (auto done = read_at(fd.get(), header->metadata_offset, metadata); !done)
        return explain(std::move(done).error());
    if (base::crc32c(metadata) != header->metadata_checksum)
        return explain(damaged("the checksum of the devices' states is wrong").error());
    auto vm = decode_saved_vm(metadata);
    if (!vm)
        return explain(std::move(vm).error());
    StateFile file;
    file.fd_ = std::move(fd);
    file.name_ = name;
    file.ram_offset_ = header->ram_offset;
    file.ram_bytes_ = header->ram_bytes;
    file.vm_ = std::move(*vm);
    return file;
}

Result<void> StateFile::load_ram(memory::GuestMemory& memory) const {
    if (memory.size_bytes() != ram_bytes_)
        return base::fail(Errc::Corrupt,
                          fmt::format("state file '{}' has {} bytes of RAM, its machine has {}",
                                      name_, ram_bytes_, memory.size_bytes()));
    auto done = read_ram(memory, fd_.get(), ram_offset_);
    if (!done)
        return std::unexpected(
            std::move(done).error().with_context(fmt::format("state file '{}'", name_)));
    return {};
}

} // namespace doppel::vmm
