// SPDX-License-Identifier: Apache-2.0
#include "block/qcow2/snapshot_table.hpp"

#include <array>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/qcow2/layout.hpp"

namespace doppel::block::qcow2 {

using base::load_be;
using base::store_be;

namespace {

constexpr std::size_t kFixedBytes = 40;
constexpr std::size_t kKnownExtra = 24; // VM state size, disk size, icount
constexpr std::size_t kMaxExtra = 1024;

void parse_extra(Snapshot& snapshot, std::span<const std::byte> extra) {
    if (extra.size() >= 8)
        snapshot.vm_state_bytes = load_be<std::uint64_t>(extra.data());
    if (extra.size() >= 16)
        snapshot.disk_bytes = load_be<std::uint64_t>(extra.data() + 8);
    if (extra.size() >= 24)
        snapshot.icount = load_be<std::uint64_t>(extra.data() + 16);
    if (extra.size() > kKnownExtra)
        snapshot.unknown_extra.assign(extra.begin() + kKnownExtra, extra.end());
}

std::string text_of(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

base::Result<Snapshot> parse_one(std::span<const std::byte> bytes, std::size_t& used) {
    if (bytes.size() < kFixedBytes)
        return base::fail(Errc::Corrupt, "the snapshot table passes the end of the file");
    Snapshot snapshot;
    snapshot.l1_offset = load_be<std::uint64_t>(bytes.data());
    snapshot.l1_entries = load_be<std::uint32_t>(bytes.data() + 8);
    const std::size_t id_bytes = load_be<std::uint16_t>(bytes.data() + 12);
    const std::size_t name_bytes = load_be<std::uint16_t>(bytes.data() + 14);
    snapshot.seconds = load_be<std::uint32_t>(bytes.data() + 16);
    snapshot.nanoseconds = load_be<std::uint32_t>(bytes.data() + 20);
    snapshot.vm_clock_ns = load_be<std::uint64_t>(bytes.data() + 24);
    snapshot.vm_state_bytes = load_be<std::uint32_t>(bytes.data() + 32);
    const std::size_t extra_bytes = load_be<std::uint32_t>(bytes.data() + 36);
    if (extra_bytes > kMaxExtra)
        return base::fail(Errc::Corrupt, fmt::format("a snapshot has {} bytes of extra data, "
                                                     "allowed are {}",
                                                     extra_bytes, kMaxExtra));
    const auto whole = kFixedBytes + extra_bytes + id_bytes + name_bytes;
    if (bytes.size() < whole)
        return base::fail(Errc::Corrupt, "the snapshot table passes the end of the file");
    parse_extra(snapshot, bytes.subspan(kFixedBytes, extra_bytes));
    snapshot.id = text_of(bytes.subspan(kFixedBytes + extra_bytes, id_bytes));
    snapshot.name = text_of(bytes.subspan(kFixedBytes + extra_bytes + id_bytes, name_bytes));
    used = base::align_up(whole, 8);
    return snapshot;
}

template <typename T> void append(std::vector<std::byte>& out, T value) {
    std::array<std::byte, sizeof(T)> bytes{};
    store_be(bytes.data(), value);
    out.insert(out.end(), bytes.begin(), bytes.end());
}

void append(std::vector<std::byte>& out, const std::string& text) {
    const auto bytes = std::as_bytes(std::span{text.data(), text.size()});
    out.insert(out.end(), bytes.begin(), bytes.end());
}

} // namespace

base::Result<std::vector<Snapshot>> parse_snapshots(std::span<const std::byte> bytes,
                                                    std::uint32_t count,
                                                    std::uint64_t default_disk_bytes) {
    std::vector<Snapshot> snapshots;
    std::size_t used = 0;
    for (std::uint32_t i = 0; i < count; ++i) {
        if (used > bytes.size())
            return base::fail(Errc::Corrupt, "the snapshot table passes the end of the file");
        std::size_t length = 0;
        auto snapshot = DOPPEL_TRY(parse_one(bytes.subspan(used), length));
        if (snapshot.disk_bytes == 0)
            snapshot.disk_bytes = default_disk_bytes;
        if (std::uint64_t{snapshot.l1_entries} * 8 > kMaxL1Bytes)
            return base::fail(Errc::Corrupt,
                              fmt::format("the L1 table of snapshot '{}' has {} entries",
                                          snapshot.name, snapshot.l1_entries));
        snapshots.push_back(std::move(snapshot));
        used += length;
    }
    return snapshots;
}

std::vector<std::byte> serialize_snapshots(const std::vector<Snapshot>& snapshots) {
    std::vector<std::byte> out;
    for (const auto& snapshot : snapshots) {
        append(out, snapshot.l1_offset);
        append(out, snapshot.l1_entries);
        append(out, static_cast<std::uint16_t>(snapshot.id.size()));
        append(out, static_cast<std::uint16_t>(snapshot.name.size()));
        append(out, snapshot.seconds);
        append(out, snapshot.nanoseconds);
        append(out, snapshot.vm_clock_ns);
        // Version 2's field has 32 bits; the true size stands in the extra data.
        append(out, snapshot.vm_state_bytes <= 0xffffffff
                        ? static_cast<std::uint32_t>(snapshot.vm_state_bytes)
                        : 0u);
        append(out, static_cast<std::uint32_t>(kKnownExtra + snapshot.unknown_extra.size()));
        append(out, snapshot.vm_state_bytes);
        append(out, snapshot.disk_bytes);
        append(out, snapshot.icount);
        out.insert(out.end(), snapshot.unknown_extra.begin(), snapshot.unknown_extra.end());
        append(out, snapshot.id);
        append(out, snapshot.name);
        out.resize(base::align_up(out.size(), 8));
    }
    return out;
}

} // namespace doppel::block::qcow2
