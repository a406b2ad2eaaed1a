// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Arrays that are reserved at their full size and take memory only as they fill. Their elements
/// never move, so that a reader who has learnt a number needs no lock; and a number takes half as
/// much room as a pointer.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <type_traits>

#include "base/verify.hpp"

namespace doppel::cpu::translator {

/// The owner knows which elements exist.
template <typename T> class Reserved {
    static_assert(std::is_trivially_copyable_v<T>);

public:
    /// allocated() tells whether there was room.
    explicit Reserved(std::size_t capacity)
        : elements_{static_cast<T*>(std::malloc(capacity * sizeof(T)))}, capacity_{capacity} {}

    bool allocated() const { return elements_ != nullptr; }
    std::size_t capacity() const { return capacity_; }
    T& operator[](std::size_t number) const { return elements_.get()[number]; }
    std::uint32_t number_of(const T& element) const {
        return static_cast<std::uint32_t>(&element - elements_.get());
    }
    T& make(std::size_t number, const T& element) {
        DOPPEL_VERIFY(number < capacity_, "the owner asks for room first");
        return *std::construct_at(&elements_.get()[number], element);
    }

private:
    struct Free {
        void operator()(T* elements) const { std::free(elements); }
    };
    std::unique_ptr<T, Free> elements_;
    std::size_t capacity_;
};

/// Filled front to back.
template <typename T> class Pool : public Reserved<T> {
public:
    using Reserved<T>::Reserved;

    std::size_t size() const { return size_; }
    std::size_t room() const { return this->capacity() - size_; }
    T& add(const T& element) { return this->make(size_++, element); }

private:
    std::size_t size_ = 0;
};

} // namespace doppel::cpu::translator
