// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Memory for translated code: one memfd, two views. The executable view is never writable and the
/// writable view never executable; only the translator knows where the latter is.
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.hpp"
#include "base/result.hpp"
#include "base/unique_fd.hpp"

namespace doppel::cpu::translator {

class CodeMemory {
public:
    /// Errors: OutOfMemory. Pages are backed when first written.
    static base::Result<std::unique_ptr<CodeMemory>> create(std::size_t size_bytes);
    ~CodeMemory();
    CodeMemory(const CodeMemory&) = delete;
    CodeMemory& operator=(const CodeMemory&) = delete;

    /// Soon puts huge pages behind [offset, offset + bytes) and what is around it, where the host
    /// lets us: translated code is spread so widely that the host's TLB is what it waits for. A
    /// thread of its own does it, as that takes as long as a hundred translations and more. One
    /// thread at a time; others may be executing there.
    void use_huge_pages(std::size_t offset, std::size_t bytes);
    /// Returns when it is done.
    void wait_for_huge_pages();

    std::uint8_t* exec() const { return exec_; }
    std::uint8_t* write() const { return write_; }
    std::size_t size() const { return size_; }
    bool contains(const void* address) const {
        const auto offset =
            reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(exec_);
        return offset < size_;
    }
    /// Stores 4 or 8 bytes of code at once; `exec` must not straddle 8 aligned bytes. Other threads
    /// may be executing there.
    void patch32(std::uint8_t* exec, std::uint32_t value) const;
    void patch64(std::uint8_t* exec, std::uint64_t value) const;
    std::uint8_t* writable(std::uint8_t* exec) const { return write_ + (exec - exec_); }

private:
    CodeMemory() = default;
    void make_huge_pages();
    void make_huge_page(std::size_t number) const;

    base::UniqueFd fd_;
    std::uint8_t* exec_ = nullptr;
    std::uint8_t* write_ = nullptr;
    std::size_t size_ = 0;
    std::vector<bool> asked_; // for each whole huge page

    base::Mutex mutex_;
    std::condition_variable_any changed_;
    std::deque<std::size_t> wanted_ DOPPEL_GUARDED_BY(mutex_); // numbers; the first is being made
    bool ending_ DOPPEL_GUARDED_BY(mutex_) = false;
    std::jthread maker_; // from the first that was asked for
};

} // namespace doppel::cpu::translator
