// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/codec/codec.hpp"
#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

Task<void> Qcow2Node::read(std::uint64_t offset, IoBuffer into) {
    const auto begin = base::align_down(offset, geometry_.cluster());
    const auto end = base::align_up(offset + into.size(), geometry_.cluster());
    auto wait = guests_.lock(begin, end, RangeLock::Mode::Shared);
    auto guard = co_await wait;
    DOPPEL_AWAIT_VOID(read_mapped(offset, into));
    co_return {};
}

/// The caller holds the range.
Task<void> Qcow2Node::read_mapped(std::uint64_t offset, IoBuffer into) {
    for (std::size_t done = 0; done < into.size();) {
        DOPPEL_AWAIT(run, find_run(offset + done, into.size() - done));
        const auto part = into.slice(done, run.length);
        switch (run.kind) {
        case Kind::Data:
            DOPPEL_CO_TRY_VOID(require_unlocked());
            DOPPEL_AWAIT_VOID(data_->read(run.host, part));
            break;
        case Kind::Zero: part.fill(std::byte{0}); break;
        case Kind::Unallocated: DOPPEL_AWAIT_VOID(read_behind(offset + done, part)); break;
        case Kind::Compressed:
            DOPPEL_AWAIT_VOID(read_compressed(run.entry, offset + done, part));
            break;
        }
        done += run.length;
    }
    co_return {};
}

Task<void> Qcow2Node::read_behind(std::uint64_t offset, IoBuffer into) {
    const auto known = backing_ && offset < backing_->size()
                           ? std::min<std::uint64_t>(into.size(), backing_->size() - offset)
                           : 0;
    into.slice(known, into.size() - known).fill(std::byte{0});
    if (known > 0)
        DOPPEL_AWAIT_VOID(backing_->read(offset, into.slice(0, known)));
    co_return {};
}

Task<void> Qcow2Node::decompress(const Entry& entry, std::span<std::byte> out) {
    const auto range = compressed_range(entry.word, geometry_.cluster_bits);
    AlignedMemory stream{range.bytes};
    DOPPEL_AWAIT_VOID(file_->read(range.offset, IoBuffer{stream.span()}));
    Result<void> outcome;
    const bool zstd = header_.compression == Compression::Zstd;
    auto wait = context_.on_worker([&] {
        outcome = zstd ? codec::unzstd(stream.span(), out) : codec::inflate(stream.span(), out);
    });
    co_await wait;
    if (!outcome)
        co_return std::unexpected(
            std::move(outcome).error().with_context(fmt::format("'{}'", name())));
    co_return {};
}

Task<void> Qcow2Node::read_compressed(const Entry& entry, std::uint64_t offset, IoBuffer into) {
    const auto word = entry.word;
    if (unpacked_.word != word) {
        AlignedMemory bytes{geometry_.cluster()};
        DOPPEL_AWAIT_VOID(decompress(entry, bytes.span()));
        unpacked_ = {word, std::move(bytes)};
    }
    into.copy_from(unpacked_.bytes.span().subspan(geometry_.within(offset), into.size()));
    co_return {};
}

Task<CompressedPiece> Qcow2Node::compressed_piece(std::uint64_t offset) {
    DOPPEL_AWAIT(entry, entry_at(offset));
    if (!entry.compressed())
        co_return base::fail(Errc::Internal, "the cluster is not compressed");
    const auto range = compressed_range(entry.word, geometry_.cluster_bits);
    co_return CompressedPiece{range.offset, range.bytes};
}

} // namespace doppel::block::qcow2
