// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/native/stub_cache.hpp"

#include <cerrno>
#include <cpuid.h>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

#include "base/unique_fd.hpp"

namespace doppel::cpu::x86::native {
namespace {
constexpr std::uint8_t kRet = 0xc3;
constexpr std::uint8_t kInt3 = 0xcc;
} // namespace

base::Result<std::unique_ptr<StubCache>> StubCache::create() {
    constexpr std::size_t kBytes = kStubs * kStubBytes;
    const base::UniqueFd fd{memfd_create("doppel-native", MFD_CLOEXEC)};
    if (fd.get() < 0 || ftruncate(fd.get(), kBytes) != 0)
        return base::fail_errno(errno, "create memory for native code");
    std::unique_ptr<StubCache> cache{new StubCache};
    void* writable = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (writable == MAP_FAILED)
        return base::fail_errno(errno, "map memory for native code");
    cache->writable_ = static_cast<std::byte*>(writable);
    void* executable = mmap(nullptr, kBytes, PROT_READ | PROT_EXEC, MAP_SHARED, fd.get(), 0);
    if (executable == MAP_FAILED)
        return base::fail_errno(errno, "map memory for native code as executable");
    cache->executable_ = static_cast<std::byte*>(executable);
    return cache;
}

StubCache::~StubCache() {
    if (writable_ != nullptr)
        munmap(writable_, kStubs * kStubBytes);
    if (executable_ != nullptr)
        munmap(executable_, kStubs * kStubBytes);
}

const std::byte* StubCache::find_or_add(const Code& code, std::size_t length) {
    const std::uint64_t hash = (code[0] ^ code[1] * 31) * 0x9e37'79b9'7f4a'7c15u;
    Entry& entry = entries_[hash >> 54];
    static_assert(kEntries == 1 << 10);
    if (entry.length == length && entry.code == code)
        return executable_ + entry.stub * kStubBytes;
    if (used_ == kStubs) { // reused memory: the CPU may have fetched the old code ahead
        used_ = 0;
        entries_ = {};
        unsigned a, b, c, d;
        __cpuid(0, a, b, c, d);
    }
    entry = {code, static_cast<std::uint32_t>(length), static_cast<std::uint32_t>(used_++)};
    std::byte* stub = writable_ + entry.stub * kStubBytes;
    std::memset(stub, kInt3, kStubBytes);
    std::memcpy(stub, code.data(), length);
    stub[length] = std::byte{kRet};
    return executable_ + entry.stub * kStubBytes;
}

} // namespace doppel::cpu::x86::native
