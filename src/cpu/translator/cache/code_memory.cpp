// SPDX-License-Identifier: Apache-2.0
#include "cpu/translator/cache/code_memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include <fmt/core.h>

namespace doppel::cpu::translator {

base::Result<std::unique_ptr<CodeMemory>> CodeMemory::create(std::size_t size_bytes) {
    auto memory = std::unique_ptr<CodeMemory>{new CodeMemory};
    memory->fd_.reset(::memfd_create("doppel-code", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!memory->fd_ || ::ftruncate(memory->fd_.get(), static_cast<off_t>(size_bytes)) != 0)
        return base::fail_errno(errno, fmt::format("create {} bytes of code memory", size_bytes));
    const int fd = memory->fd_.get();
    void* const write = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    void* const exec = ::mmap(nullptr, size_bytes, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    memory->size_ = size_bytes;
    if (write != MAP_FAILED)
        memory->write_ = static_cast<std::uint8_t*>(write);
    if (exec != MAP_FAILED)
        memory->exec_ = static_cast<std::uint8_t*>(exec);
    if (memory->write_ == nullptr || memory->exec_ == nullptr)
        return base::fail_errno(errno, fmt::format("map {} bytes of code memory", size_bytes),
                                "the translator needs executable shared memory");
    return memory;
}

CodeMemory::~CodeMemory() {
    if (write_ != nullptr)
        ::munmap(write_, size_);
    if (exec_ != nullptr)
        ::munmap(exec_, size_);
}

void CodeMemory::patch32(std::uint8_t* exec, std::uint32_t value) const {
    auto* const place = reinterpret_cast<std::uint32_t*>(writable(exec));
    __atomic_store_n(place, value, __ATOMIC_RELEASE);
}

void CodeMemory::patch64(std::uint8_t* exec, std::uint64_t value) const {
    auto* const place = reinterpret_cast<std::uint64_t*>(writable(exec));
    __atomic_store_n(place, value, __ATOMIC_RELEASE);
}

} // namespace doppel::cpu::translator
