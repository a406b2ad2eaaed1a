// SPDX-License-Identifier: Apache-2.0
#include "cpu/translator/cache/code_memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>

#include <fmt/core.h>

namespace doppel::cpu::translator {

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr int kCollapse = 25; // MADV_COLLAPSE of Linux 6.1, which this libc may not name

/// nullptr: there is no room. At a multiple of kHugePage, or no huge page could be behind it.
std::uint8_t* map_view(int fd, std::size_t size_bytes, int protection) {
    const std::size_t room = size_bytes + kHugePage;
    void* const reserved =
        ::mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED)
        return nullptr;
    auto* const begin = static_cast<std::uint8_t*>(reserved);
    const std::size_t skipped = -reinterpret_cast<std::uintptr_t>(begin) & (kHugePage - 1);
    if (skipped != 0)
        ::munmap(begin, skipped);
    const std::size_t pages = (size_bytes + 4095) & ~std::size_t{4095};
    ::munmap(begin + skipped + pages, room - skipped - pages);
    void* const view =
        ::mmap(begin + skipped, size_bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0);
    return view == MAP_FAILED ? nullptr : static_cast<std::uint8_t*>(view);
}

} // namespace

base::Result<std::unique_ptr<CodeMemory>> CodeMemory::create(std::size_t size_bytes) {
    auto memory = std::unique_ptr<CodeMemory>{new CodeMemory};
    memory->fd_.reset(::memfd_create("doppel-code", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!memory->fd_ || ::ftruncate(memory->fd_.get(), static_cast<off_t>(size_bytes)) != 0)
        return base::fail_errno(errno, fmt::format("create {} bytes of code memory", size_bytes));
    const int fd = memory->fd_.get();
    memory->size_ = size_bytes;
    memory->asked_.resize(size_bytes / kHugePage);
    memory->write_ = map_view(fd, size_bytes, PROT_READ | PROT_WRITE);
    memory->exec_ = map_view(fd, size_bytes, PROT_READ | PROT_EXEC);
    if (memory->write_ == nullptr || memory->exec_ == nullptr)
        return base::fail_errno(errno, fmt::format("map {} bytes of code memory", size_bytes),
                                "the translator needs executable shared memory");
    return memory;
}

CodeMemory::~CodeMemory() {
    {
        const base::MutexLock lock{mutex_};
        ending_ = true;
    }
    changed_.notify_all();
    if (maker_.joinable())
        maker_.join();
    if (write_ != nullptr)
        ::munmap(write_, size_);
    if (exec_ != nullptr)
        ::munmap(exec_, size_);
}

void CodeMemory::use_huge_pages(std::size_t offset, std::size_t bytes) {
    for (std::size_t i = offset / kHugePage; i * kHugePage < offset + bytes; ++i) {
        if (i >= asked_.size() || asked_[i])
            continue;
        asked_[i] = true;
        {
            const base::MutexLock lock{mutex_};
            wanted_.push_back(i);
        }
        changed_.notify_all();
        if (!maker_.joinable())
            maker_ = std::jthread{[this] { make_huge_pages(); }};
    }
}

void CodeMemory::wait_for_huge_pages() {
    const base::MutexLock lock{mutex_};
    while (!wanted_.empty())
        changed_.wait(mutex_);
}

void CodeMemory::make_huge_pages() {
    sigset_t all;
    sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, nullptr); // signals belong to the owner's threads
    ::pthread_setname_np(::pthread_self(), "doppel-code");
    for (;;) {
        std::size_t number = 0;
        {
            const base::MutexLock lock{mutex_};
            while (wanted_.empty() && !ending_)
                changed_.wait(mutex_);
            if (ending_)
                return;
            number = wanted_.front();
        }
        make_huge_page(number);
        {
            const base::MutexLock lock{mutex_};
            wanted_.pop_front();
        }
        changed_.notify_all();
    }
}

/// Hosts do not give huge pages to shared memory by themselves (shmem_enabled is "never"), but they
/// do when asked to make one of pages that are there: the first one is written to. If the answer is
/// no, all is as it was.
void CodeMemory::make_huge_page(std::size_t number) const {
    std::uint8_t* const begin = write_ + number * kHugePage;
    __atomic_fetch_or(begin, 0, __ATOMIC_RELAXED);
    if (::madvise(begin, kHugePage, kCollapse) == 0)
        ::madvise(exec_ + number * kHugePage, kHugePage, kCollapse);
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
