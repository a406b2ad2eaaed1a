// SPDX-License-Identifier: Apache-2.0
#include "firmware/acpi/aml.hpp"

#include <algorithm>
#include <concepts>

#include "base/verify.hpp"

namespace doppel::firmware::acpi {

namespace {

void add8(Bytes& to, unsigned value) { to.push_back(static_cast<std::byte>(value)); }

template <std::unsigned_integral T> void add_le(Bytes& to, T value) {
    for (std::size_t i = 0; i < sizeof value; ++i)
        add8(to, static_cast<unsigned>(value >> (i * 8)) & 0xff);
}

void append(Bytes& to, std::span<const std::byte> more) {
    to.insert(to.end(), more.begin(), more.end());
}

/// PkgLength counts itself (§20.2.4): one byte up to 63, else a lead byte and one to three more.
Bytes package_length(std::size_t content) {
    Bytes out;
    if (content + 1 < 0x40) {
        add8(out, static_cast<unsigned>(content + 1));
        return out;
    }
    unsigned extra = 1;
    while (content + 1 + extra >= std::size_t{1} << (4 + 8 * extra))
        ++extra;
    const auto length = content + 1 + extra;
    add8(out, static_cast<unsigned>(extra << 6 | (length & 0xf)));
    for (unsigned i = 0; i < extra; ++i)
        add8(out, static_cast<unsigned>(length >> (4 + 8 * i)) & 0xff);
    return out;
}

Bytes packaged(std::initializer_list<unsigned> opcode, const Bytes& content) {
    Bytes out;
    for (const auto byte : opcode)
        add8(out, byte);
    append(out, package_length(content.size()));
    append(out, content);
    return out;
}

Bytes name_string(std::string_view name) {
    Bytes out;
    if (name.starts_with('\\')) {
        add8(out, '\\');
        name.remove_prefix(1);
    }
    DOPPEL_VERIFY(!name.empty() && name.size() <= 4, "names of our DSDT are one segment");
    for (std::size_t i = 0; i < 4; ++i)
        add8(out, i < name.size() ? static_cast<unsigned char>(name[i]) : '_');
    return out;
}

Bytes named(std::initializer_list<unsigned> opcode, std::string_view name,
            std::initializer_list<Bytes> terms) {
    auto content = name_string(name);
    for (const auto& term : terms)
        append(content, term);
    return packaged(opcode, content);
}

// General flags of a window (§6.4.3.5.1): producer, positive decode, minimum and maximum fixed.
constexpr unsigned kWindowFlags = 0x0c;

unsigned type_flags(AddressKind kind) {
    switch (kind) {
    case AddressKind::Memory: return 1; // read-write, non-cacheable
    case AddressKind::Io: return 3;     // the entire range
    case AddressKind::BusNumber: break;
    }
    return 0;
}

template <std::unsigned_integral T> Bytes window(unsigned tag, AddressKind kind, T first, T last) {
    Bytes out;
    add8(out, tag);
    add_le(out, static_cast<std::uint16_t>(3 + 5 * sizeof(T)));
    add8(out, static_cast<unsigned>(kind));
    add8(out, kWindowFlags);
    add8(out, type_flags(kind));
    add_le(out, T{0}); // granularity
    add_le(out, first);
    add_le(out, last);
    add_le(out, T{0}); // translation
    add_le(out, static_cast<T>(last - first + 1));
    return out;
}

} // namespace

Bytes aml_integer(std::uint64_t value) {
    Bytes out;
    if (value <= 1) {
        add8(out, static_cast<unsigned>(value)); // ZeroOp, OneOp
    } else if (value <= 0xff) {
        add8(out, 0x0a);
        add_le(out, static_cast<std::uint8_t>(value));
    } else if (value <= 0xffff) {
        add8(out, 0x0b);
        add_le(out, static_cast<std::uint16_t>(value));
    } else if (value <= 0xffff'ffff) {
        add8(out, 0x0c);
        add_le(out, static_cast<std::uint32_t>(value));
    } else {
        add8(out, 0x0e);
        add_le(out, value);
    }
    return out;
}

Bytes aml_string(std::string_view text) {
    Bytes out;
    add8(out, 0x0d);
    append(out, std::as_bytes(std::span{text}));
    add8(out, 0);
    return out;
}

Bytes aml_eisa_id(std::string_view id) {
    DOPPEL_VERIFY(id.size() == 7, "an EISA id is three letters and four hexadecimal digits");
    const auto letter = [&](std::size_t i) { return static_cast<unsigned>(id[i] - '@') & 0x1f; };
    const auto digit = [&](std::size_t i) {
        const char c = id[i];
        return static_cast<unsigned>(c <= '9' ? c - '0' : c - 'A' + 10);
    };
    const unsigned vendor = letter(0) << 10 | letter(1) << 5 | letter(2);
    const unsigned product = digit(3) << 12 | digit(4) << 8 | digit(5) << 4 | digit(6);
    Bytes out;
    add8(out, 0x0c);
    for (const auto byte : {vendor >> 8, vendor & 0xff, product >> 8, product & 0xff})
        add8(out, byte);
    return out;
}

Bytes aml_package(std::span<const Bytes> elements) {
    Bytes content;
    add8(content, static_cast<unsigned>(elements.size()));
    for (const auto& element : elements)
        append(content, element);
    return packaged({0x12}, content);
}

Bytes aml_package(std::initializer_list<Bytes> elements) {
    return aml_package(std::span{elements.begin(), elements.size()});
}

Bytes aml_buffer(std::span<const std::byte> content) {
    auto inner = aml_integer(content.size());
    append(inner, content);
    return packaged({0x11}, inner);
}

Bytes aml_name(std::string_view name, const Bytes& value) {
    Bytes out;
    add8(out, 0x08);
    append(out, name_string(name));
    append(out, value);
    return out;
}

Bytes aml_scope(std::string_view name, std::initializer_list<Bytes> terms) {
    return named({0x10}, name, terms);
}

Bytes aml_device(std::string_view name, std::initializer_list<Bytes> terms) {
    return named({0x5b, 0x82}, name, terms);
}

Bytes aml_method(std::string_view name, unsigned arguments, std::initializer_list<Bytes> body) {
    auto content = name_string(name);
    add8(content, arguments & 7);
    for (const auto& term : body)
        append(content, term);
    return packaged({0x14}, content);
}

Bytes aml_return_argument(unsigned index) {
    Bytes out;
    add8(out, 0xa4);
    add8(out, 0x68 + index);
    return out;
}

Bytes aml_join(std::initializer_list<Bytes> terms) {
    Bytes out;
    for (const auto& term : terms)
        append(out, term);
    return out;
}

Bytes resource_io(std::uint16_t base, std::uint8_t length) {
    Bytes out;
    add8(out, 0x47); // §6.4.2.5
    add8(out, 1);    // decodes 16 bits
    add_le(out, base);
    add_le(out, base);
    add8(out, 1);
    add8(out, length);
    return out;
}

Bytes resource_irq(unsigned irq) {
    Bytes out;
    add8(out, 0x22); // §6.4.2.1: edge, active high
    add_le(out, static_cast<std::uint16_t>(1u << irq));
    return out;
}

Bytes resource_fixed_memory(std::uint32_t base, std::uint32_t length) {
    Bytes out;
    add8(out, 0x86); // §6.4.3.4
    add_le(out, std::uint16_t{9});
    add8(out, 1); // writable
    add_le(out, base);
    add_le(out, length);
    return out;
}

Bytes resource_word_window(AddressKind kind, std::uint16_t first, std::uint16_t last) {
    return window<std::uint16_t>(0x88, kind, first, last);
}
Bytes resource_dword_window(AddressKind kind, std::uint32_t first, std::uint32_t last) {
    return window<std::uint32_t>(0x87, kind, first, last);
}
Bytes resource_qword_window(AddressKind kind, std::uint64_t first, std::uint64_t last) {
    return window<std::uint64_t>(0x8a, kind, first, last);
}

Bytes aml_resources(std::initializer_list<Bytes> descriptors) {
    auto content = aml_join(descriptors);
    add8(content, 0x79); // end tag (§6.4.2.9), checksum 0 = none
    add8(content, 0);
    return aml_buffer(content);
}

} // namespace doppel::firmware::acpi
