// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The system calls of this folder, as values with errors. Linux 6.1
/// Documentation/virt/kvm/api.rst.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/result.hpp"
#include "base/unique_fd.hpp"

namespace doppel::cpu::kvm {

/// What is asked of the kernel; tests put their own in, to let any call fail. Any thread. Results
/// and errno are those of the system calls.
class Syscalls {
public:
    virtual ~Syscalls() = default;
    virtual int open(const char* path);
    virtual int ioctl(int fd, unsigned long request, void* argument);
    virtual void* map(int fd, std::size_t bytes);

    static Syscalls& host();
};

/// An ioctl and its name, for error texts.
struct Request {
    unsigned long number;
    const char* name;
};
#define DOPPEL_KVM_REQUEST(name) (::doppel::cpu::kvm::Request{name, #name})

/// The argument of KVM_SET_MSRS and its like: a count, then that many entries. <linux/kvm.h>
/// declares these so that C++ sees a header of 12 bytes instead of 8, in the request's number as
/// well.
template <typename Entry> class Table {
public:
    static constexpr std::size_t kHeaderBytes = 8;

    explicit Table(std::size_t count)
        : bytes_(kHeaderBytes + count * sizeof(Entry)), count_{count} {
        const auto number = static_cast<std::uint32_t>(count);
        std::memcpy(bytes_.data(), &number, sizeof number);
    }
    std::byte& head() { return bytes_.front(); }
    std::size_t count() const { return count_; }
    /// As the kernel left it: KVM_GET_SUPPORTED_CPUID.
    std::size_t kernel_count() const {
        std::uint32_t number = 0;
        std::memcpy(&number, bytes_.data(), sizeof number);
        return number;
    }
    Entry get(std::size_t index) const {
        Entry entry;
        std::memcpy(&entry, bytes_.data() + kHeaderBytes + index * sizeof entry, sizeof entry);
        return entry;
    }
    void set(std::size_t index, const Entry& entry) {
        std::memcpy(bytes_.data() + kHeaderBytes + index * sizeof entry, &entry, sizeof entry);
    }

private:
    std::vector<std::byte> bytes_;
    std::size_t count_;
};
/// The request's number with the size that C sees.
constexpr unsigned long sized(unsigned long number, std::size_t bytes) {
    constexpr unsigned long kSize = 0x3fff'0000; // bits 29:16 (asm-generic/ioctl.h)
    return (number & ~kSize) | bytes << 16;
}
#define DOPPEL_KVM_TABLE_REQUEST(name)                                                             \
    (::doppel::cpu::kvm::Request{::doppel::cpu::kvm::sized(name, 8), #name})

/// One KVM descriptor: the system's, a VM's or a vCPU's. Any thread.
class Descriptor {
public:
    Descriptor() = default;
    Descriptor(Syscalls& syscalls, base::UniqueFd fd) : syscalls_{&syscalls}, fd_{std::move(fd)} {}

    /// Repeats what a signal interrupted. Errors: the system's, naming the request.
    template <typename T> base::Result<int> call(Request request, T& argument) const {
        return call_pointer(request, &argument);
    }
    /// Of the requests that take a number.
    base::Result<int> call_value(Request request, std::uintptr_t value = 0) const;
    /// The same without an error text, for hot or optional calls: -1 and errno.
    int try_call(Request request, void* argument) const {
        return syscalls_->ioctl(fd_.get(), request.number, argument);
    }

    Syscalls& syscalls() const { return *syscalls_; }
    int get() const { return fd_.get(); }

private:
    base::Result<int> call_pointer(Request request, void* argument) const;

    Syscalls* syscalls_ = nullptr; // outlives every descriptor
    base::UniqueFd fd_;
};

} // namespace doppel::cpu::kvm
