// SPDX-License-Identifier: Apache-2.0
#include "cpu/kvm/ioctl.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <cerrno>

namespace doppel::cpu::kvm {

int Syscalls::open(const char* path) { return ::open(path, O_RDWR | O_CLOEXEC); }

int Syscalls::ioctl(int fd, unsigned long request, void* argument) {
    return ::ioctl(fd, request, argument);
}

void* Syscalls::map(int fd, std::size_t bytes) {
    return ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

Syscalls& Syscalls::host() {
    static Syscalls syscalls;
    return syscalls;
}

base::Result<int> Descriptor::call_pointer(Request request, void* argument) const {
    int result = 0;
    do
        result = try_call(request, argument);
    while (result < 0 && errno == EINTR);
    if (result < 0)
        return base::fail_errno(errno, request.name);
    return result;
}

base::Result<int> Descriptor::call_value(Request request, std::uintptr_t value) const {
    return call_pointer(request, reinterpret_cast<void*>(value)); // one word for the kernel
}

} // namespace doppel::cpu::kvm
