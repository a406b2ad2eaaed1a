// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Memory aligned for O_DIRECT, zeroed unless it says otherwise. Any thread.
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>

#include "base/verify.hpp"

namespace doppel::block {

class AlignedMemory {
public:
    static constexpr std::size_t kAlignment = 4096;
    AlignedMemory() = default;
    explicit AlignedMemory(std::size_t size_bytes) : AlignedMemory{uninitialized(size_bytes)} {
        if (size_bytes != 0)
            std::memset(memory_.get(), 0, size_bytes);
    }
    /// For what is filled before it is read.
    static AlignedMemory uninitialized(std::size_t size_bytes) {
        AlignedMemory fresh;
        fresh.memory_.reset(static_cast<std::byte*>(
            std::aligned_alloc(kAlignment, (size_bytes + kAlignment - 1) & ~(kAlignment - 1))));
        fresh.size_ = size_bytes;
        DOPPEL_VERIFY(size_bytes == 0 || fresh.memory_, "there is memory");
        return fresh;
    }
    std::byte* data() noexcept { return memory_.get(); }
    const std::byte* data() const noexcept { return memory_.get(); }
    std::size_t size() const noexcept { return size_; }
    std::span<std::byte> span() noexcept { return {memory_.get(), size_}; }
    std::span<const std::byte> span() const noexcept { return {memory_.get(), size_}; }

private:
    struct Free {
        void operator()(std::byte* memory) const noexcept { std::free(memory); }
    };
    std::unique_ptr<std::byte, Free> memory_;
    std::size_t size_ = 0;
};

} // namespace doppel::block
