// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Host code for single guest instructions: two views of one memfd, one writable, one executable;
/// no page is ever both. Owner thread only.
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/result.hpp"

namespace doppel::cpu::x86::native {

class StubCache {
public:
    static constexpr std::size_t kStubBytes = 32;

    static base::Result<std::unique_ptr<StubCache>> create();
    ~StubCache();
    StubCache(const StubCache&) = delete;
    StubCache& operator=(const StubCache&) = delete;

    /// Host instruction bytes (at most 15); a RET is put behind them.
    using Code = std::array<std::uint64_t, 2>;
    const std::byte* find_or_add(const Code& code, std::size_t length);

private:
    StubCache() = default;
    struct Entry {
        Code code{};
        std::uint32_t length = 0;
        std::uint32_t stub = 0;
    };
    static constexpr std::size_t kEntries = 1024;
    static constexpr std::size_t kStubs = 2048;

    std::array<Entry, kEntries> entries_{};
    std::size_t used_ = 0; // stubs are handed out once, then all over again
    std::byte* writable_ = nullptr;
    std::byte* executable_ = nullptr;
};

} // namespace doppel::cpu::x86::native
