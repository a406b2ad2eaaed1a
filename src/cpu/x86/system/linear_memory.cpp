// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/system/linear_memory.hpp"

#include "cpu/x86/system/exceptions.hpp"
#include "cpu/x86/system/ram_write.hpp"

namespace doppel::cpu::x86 {

namespace {

constexpr std::uint64_t kPageMask = 0xfff;

/// One stretch of an access within one page.
struct Piece {
    std::byte* host = nullptr; // of the first byte; nullptr: not RAM
    std::uint64_t gpa = 0;
    const std::atomic<std::uint8_t>* state = nullptr;
    std::uint32_t bytes = 0;
    bool global = false; // the guest's page
    std::uint8_t page_shift = 12;
};

/// An access cut at the page boundary.
struct Pieces {
    Piece part[2];
    unsigned count = 0;
};

bool resolve_miss(SystemContext& cx, std::uint64_t linear, AccessType access, Privilege privilege,
                  TlbEntry& out) {
    Translation translation;
    if (!translate(cx, linear, access, privilege, translation))
        return false;
    out = {.page = linear & ~kPageMask,
           .gpa = translation.gpa.page().value,
           .permissions = allowed(cx, translation),
           .page_shift = translation.page_shift};
    if (const RamView::Region* region = cx.ram.find(out.gpa); region != nullptr) {
        const std::uint64_t offset = out.gpa - region->base;
        out.host = region->host + offset;
        out.state = region->states + (offset >> 12);
    }
    cx.tlb.insert(out, translation.global);
    out.identity = cx.tlb.slot(linear).identity;
    return true;
}

[[gnu::always_inline]] inline bool resolve(SystemContext& cx, std::uint64_t linear,
                                           std::uint32_t bytes, AccessType access,
                                           Privilege privilege, Piece& out) {
    TlbEntry entry;
    if (const TlbEntry* hit = cx.tlb.lookup(linear, permission(access, privilege)))
        entry = *hit;
    else if (!resolve_miss(cx, linear, access, privilege, entry))
        return false;
    const std::uint64_t offset = linear & kPageMask;
    out = {.host = entry.host == nullptr ? nullptr : entry.host + offset,
           .gpa = entry.gpa + offset,
           .state = entry.state,
           .bytes = bytes,
           .global = cx.tlb.is_global(entry),
           .page_shift = entry.page_shift};
    return true;
}

std::uint64_t wrap(const SystemContext& cx, std::uint64_t linear) {
    return cx.long_mode() ? linear : linear & 0xffff'ffff;
}

bool resolve_all(SystemContext& cx, std::uint64_t linear, std::uint32_t bytes, AccessType access,
                 Privilege privilege, Pieces& out) {
    const auto first = static_cast<std::uint32_t>(0x1000 - (linear & kPageMask));
    if (bytes <= first) [[likely]] {
        out.count = 1;
        return resolve(cx, linear, bytes, access, privilege, out.part[0]);
    }
    out.count = 2;
    return resolve(cx, linear, first, access, privilege, out.part[0]) &&
           resolve(cx, wrap(cx, linear + first), bytes - first, access, privilege, out.part[1]);
}

/// One access each for 1, 2, 4 and 8 bytes, so that aligned ones are single-copy atomic.
void move_bytes(std::byte* to, const std::byte* from, std::uint32_t bytes) {
    switch (bytes) {
    case 1: __builtin_memcpy(to, from, 1); return;
    case 2: __builtin_memcpy(to, from, 2); return;
    case 4: __builtin_memcpy(to, from, 4); return;
    default: break;
    }
    while (bytes >= 8) {
        __builtin_memcpy(to, from, 8);
        to += 8;
        from += 8;
        bytes -= 8;
    }
    for (; bytes != 0; --bytes)
        *to++ = *from++;
}

std::uint8_t mmio_step(std::uint32_t bytes) {
    return bytes >= 8 ? 8 : bytes >= 4 ? 4 : bytes >= 2 ? 2 : 1;
}

void mmio_read(SystemContext& cx, std::uint64_t gpa, std::byte* to, std::uint32_t bytes) {
    while (bytes != 0) {
        const std::uint8_t step = mmio_step(bytes);
        const std::uint64_t value = cx.board.mmio_read(gpa, step);
        move_bytes(to, reinterpret_cast<const std::byte*>(&value), step);
        to += step;
        gpa += step;
        bytes -= step;
    }
}

void mmio_write(SystemContext& cx, std::uint64_t gpa, const std::byte* from, std::uint32_t bytes) {
    while (bytes != 0) {
        const std::uint8_t step = mmio_step(bytes);
        std::uint64_t value = 0;
        move_bytes(reinterpret_cast<std::byte*>(&value), from, step);
        cx.board.mmio_write(gpa, step, value);
        from += step;
        gpa += step;
        bytes -= step;
    }
}

void read_piece(SystemContext& cx, const Piece& piece, std::byte* to) {
    if (piece.host != nullptr) [[likely]]
        move_bytes(to, piece.host, piece.bytes);
    else
        mmio_read(cx, piece.gpa, to, piece.bytes);
}

void write_piece(SystemContext& cx, const Piece& piece, const std::byte* from) {
    if (piece.host == nullptr)
        return mmio_write(cx, piece.gpa, from, piece.bytes);
    const RamWrite write{cx, *piece.state, piece.gpa, piece.bytes};
    move_bytes(piece.host, from, piece.bytes);
}

[[gnu::always_inline]] inline void watch(SystemContext& cx, std::uint64_t linear,
                                         std::uint32_t bytes, AccessType access) {
    if ((cx.state.dr7 & 0xff) != 0) [[unlikely]]
        note_data_access(cx, linear, bytes, access);
}

template <typename T> bool native_exchange(std::byte* host, Wide& expected, const Wide& desired) {
    auto old = static_cast<T>(expected.low);
    const bool swapped =
        __atomic_compare_exchange_n(reinterpret_cast<T*>(host), &old, static_cast<T>(desired.low),
                                    false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    expected = {old, 0};
    return swapped;
}

bool native_exchange_16(std::byte* host, Wide& expected, const Wide& desired) {
    bool swapped = false;
    asm volatile("lock cmpxchg16b %[memory]"
                 : [memory] "+m"(*reinterpret_cast<Wide*>(host)), "+a"(expected.low),
                   "+d"(expected.high), "=@ccz"(swapped)
                 : "b"(desired.low), "c"(desired.high)
                 : "memory");
    return swapped;
}

bool native_exchange(std::byte* host, std::uint32_t bytes, Wide& expected, const Wide& desired) {
    switch (bytes) {
    case 1: return native_exchange<std::uint8_t>(host, expected, desired);
    case 2: return native_exchange<std::uint16_t>(host, expected, desired);
    case 4: return native_exchange<std::uint32_t>(host, expected, desired);
    case 8: return native_exchange<std::uint64_t>(host, expected, desired);
    default: return native_exchange_16(host, expected, desired);
    }
}

/// A locked access that no host instruction does at once, or that would cost the whole host a bus
/// lock: a bus lock holds up every CPU of the machine, and kernels and hypervisors punish it with
/// milliseconds of sleep (Intel SDM Vol. 3A §10.1.2.3, bus-lock detection).
struct SplitExchange {
    SystemContext& cx;
    const Pieces& pieces;
    std::uint32_t bytes;
    Wide& expected;
    const Wide& desired;
    bool swapped = false;

    void run() {
        Wide old;
        auto* to = reinterpret_cast<std::byte*>(&old);
        const auto* from = reinterpret_cast<const std::byte*>(&desired);
        for (unsigned i = 0; i < pieces.count; to += pieces.part[i++].bytes)
            read_piece(cx, pieces.part[i], to);
        const std::uint64_t mask =
            bytes >= 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << bytes * 8) - 1;
        swapped =
            ((old.low ^ expected.low) & mask) == 0 && (bytes < 16 || old.high == expected.high);
        if (swapped)
            for (unsigned i = 0; i < pieces.count; from += pieces.part[i++].bytes)
                write_piece(cx, pieces.part[i], from);
        expected = old;
    }
};

bool crosses_cache_line(std::uint64_t linear, std::uint32_t bytes) {
    constexpr std::uint64_t kLine = 64;
    return linear % kLine + bytes > kLine;
}

} // namespace

bool read_linear(SystemContext& cx, std::uint64_t linear, void* to, std::uint32_t bytes,
                 Privilege privilege, Intent intent) {
    const AccessType access = intent == Intent::Read ? AccessType::Read : AccessType::Write;
    Pieces pieces;
    if (!resolve_all(cx, linear, bytes, access, privilege, pieces))
        return false;
    watch(cx, linear, bytes, AccessType::Read);
    auto* at = static_cast<std::byte*>(to);
    for (unsigned i = 0; i < pieces.count; at += pieces.part[i++].bytes)
        read_piece(cx, pieces.part[i], at);
    return true;
}

bool write_linear(SystemContext& cx, std::uint64_t linear, const void* from, std::uint32_t bytes,
                  Privilege privilege) {
    Pieces pieces;
    if (!resolve_all(cx, linear, bytes, AccessType::Write, privilege, pieces))
        return false;
    watch(cx, linear, bytes, AccessType::Write);
    const auto* at = static_cast<const std::byte*>(from);
    for (unsigned i = 0; i < pieces.count; at += pieces.part[i++].bytes)
        write_piece(cx, pieces.part[i], at);
    return true;
}

bool probe_linear(SystemContext& cx, std::uint64_t linear, std::uint32_t bytes, AccessType access,
                  Privilege privilege) {
    Pieces pieces;
    return resolve_all(cx, linear, bytes, access, privilege, pieces);
}

bool compare_exchange_linear(SystemContext& cx, std::uint64_t linear, std::uint32_t bytes,
                             Wide& expected, Wide desired, bool& swapped, Privilege privilege) {
    Pieces pieces;
    if (!resolve_all(cx, linear, bytes, AccessType::Write, privilege, pieces))
        return false;
    watch(cx, linear, bytes, AccessType::Write);
    const Piece& piece = pieces.part[0];
    if (pieces.count != 1 || piece.host == nullptr || crosses_cache_line(linear, bytes) ||
        (bytes == 16 && (linear & 15) != 0)) {
        SplitExchange exchange{cx, pieces, bytes, expected, desired};
        cx.board.exclusive([](void* self) { static_cast<SplitExchange*>(self)->run(); }, &exchange);
        swapped = exchange.swapped;
        return true;
    }
    const RamWrite write{cx, *piece.state, piece.gpa, piece.bytes};
    swapped = native_exchange(piece.host, bytes, expected, desired);
    return true;
}

bool fetch_linear(SystemContext& cx, std::uint64_t linear, std::uint8_t* to, std::uint32_t wanted,
                  std::uint32_t& got) {
    const auto left = static_cast<std::uint32_t>(0x1000 - (linear & kPageMask));
    got = wanted < left ? wanted : left;
    Piece piece;
    if (!resolve(cx, linear, got, AccessType::Execute, fetch_privilege(cx), piece))
        return false;
    read_piece(cx, piece, reinterpret_cast<std::byte*>(to));
    return true;
}

bool code_page(SystemContext& cx, std::uint64_t linear, CodePage& out) {
    Piece piece;
    if (!resolve(cx, linear, 1, AccessType::Execute, fetch_privilege(cx), piece))
        return false;
    const std::uint64_t offset = linear & kPageMask;
    out = {.gpa = memory::Gpa{piece.gpa - offset},
           .host = piece.host == nullptr ? nullptr : piece.host - offset,
           .global = piece.global,
           .page_shift = piece.page_shift};
    return true;
}

std::byte* host_pointer(SystemContext& cx, std::uint64_t linear, std::uint32_t bytes,
                        AccessType access, Privilege privilege) {
    if ((linear & kPageMask) + bytes > 0x1000 || (cx.state.dr7 & 0xff) != 0)
        return nullptr;
    const TlbEntry* entry = cx.tlb.lookup(linear, permission(access, privilege));
    if (entry == nullptr || entry->host == nullptr)
        return nullptr;
    if (access == AccessType::Write && entry->state->load(std::memory_order_acquire) != 0)
        return nullptr;
    return entry->host + (linear & kPageMask);
}

std::uint64_t read_physical(SystemContext& cx, std::uint64_t gpa, std::uint8_t bytes) {
    const Piece piece{.host = cx.ram.host(gpa), .gpa = gpa, .bytes = bytes};
    std::uint64_t value = 0;
    read_piece(cx, piece, reinterpret_cast<std::byte*>(&value));
    return value;
}

void write_physical(SystemContext& cx, std::uint64_t gpa, std::uint8_t bytes, std::uint64_t value) {
    Piece piece{.gpa = gpa, .bytes = bytes};
    if (const RamView::Region* region = cx.ram.find(gpa); region != nullptr) {
        piece.host = region->host + (gpa - region->base);
        piece.state = region->states + ((gpa - region->base) >> 12);
    }
    write_piece(cx, piece, reinterpret_cast<const std::byte*>(&value));
}

} // namespace doppel::cpu::x86
