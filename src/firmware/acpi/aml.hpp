// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Writes ACPI machine language: just the terms our DSDT uses (ACPI 6.5 §20.2). Owner thread only.
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>
#include <vector>

namespace doppel::firmware::acpi {

using Bytes = std::vector<std::byte>;

/// A term is its encoded bytes; terms nest by concatenation.
Bytes aml_integer(std::uint64_t value);
Bytes aml_string(std::string_view text);
/// Compressed vendor and product, "PNP0A08" (§19.3.4, EISAID).
Bytes aml_eisa_id(std::string_view id);
Bytes aml_package(std::initializer_list<Bytes> elements);
Bytes aml_package(std::span<const Bytes> elements);
Bytes aml_buffer(std::span<const std::byte> content);

/// `name` is one segment of up to four characters, or "\\_SB" style from the root.
Bytes aml_name(std::string_view name, const Bytes& value);
Bytes aml_scope(std::string_view name, std::initializer_list<Bytes> terms);
Bytes aml_device(std::string_view name, std::initializer_list<Bytes> terms);
/// A method without locals: `body` are its terms.
Bytes aml_method(std::string_view name, unsigned arguments, std::initializer_list<Bytes> body);
Bytes aml_return_argument(unsigned index);
Bytes aml_join(std::initializer_list<Bytes> terms);

// --- resource descriptors (§6.4); a template is a buffer that ends in the end tag ---

enum class AddressKind : std::uint8_t { Memory = 0, Io = 1, BusNumber = 2 };

Bytes resource_io(std::uint16_t base, std::uint8_t length);
Bytes resource_irq(unsigned irq);
Bytes resource_fixed_memory(std::uint32_t base, std::uint32_t length);
/// Producer windows of a host bridge; [first, last].
Bytes resource_word_window(AddressKind kind, std::uint16_t first, std::uint16_t last);
Bytes resource_dword_window(AddressKind kind, std::uint32_t first, std::uint32_t last);
Bytes resource_qword_window(AddressKind kind, std::uint64_t first, std::uint64_t last);
Bytes aml_resources(std::initializer_list<Bytes> descriptors);

} // namespace doppel::firmware::acpi
