// SPDX-License-Identifier: Apache-2.0
#include "base/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>

#include "base/unique_fd.hpp"

namespace doppel::base {

Result<MappedFile> MappedFile::open(const std::string& path) {
    // O_NONBLOCK: a fifo must not keep us waiting before we can refuse it
    const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    struct stat info{};
    if (!fd || ::fstat(fd.get(), &info) != 0)
        return fail_errno(errno, "open '" + path + "'");
    if (!S_ISREG(info.st_mode) || info.st_size == 0)
        return fail(Errc::InvalidArgument, "'" + path + "' is " +
                                               (S_ISDIR(info.st_mode)   ? "a directory"
                                                : S_ISREG(info.st_mode) ? "empty"
                                                                        : "no regular file"));
    const auto size = static_cast<std::size_t>(info.st_size);
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (address == MAP_FAILED)
        return fail_errno(errno, "read '" + path + "'");
    MappedFile file;
    file.bytes_ = {static_cast<const std::byte*>(address), size};
    return file;
}

void MappedFile::drop_pages() const {
    if (!bytes_.empty())
        ::madvise(const_cast<std::byte*>(bytes_.data()), bytes_.size(), MADV_DONTNEED);
}

MappedFile::~MappedFile() {
    if (!bytes_.empty())
        ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

} // namespace doppel::base
