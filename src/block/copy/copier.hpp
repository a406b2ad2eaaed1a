// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Copies one image to another: the loop's thread sees to the metadata, worker threads read, look
/// for zeroes, compress and write, or have the kernel move the data. Owner thread only.
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "block/aligned_memory.hpp"
#include "block/async_lock.hpp"
#include "block/codec/codec.hpp"
#include "block/copy/moving.hpp"
#include "block/copy/pace.hpp"
#include "block/image_node.hpp"
#include "block/io/io_context.hpp"

namespace doppel::block {

struct CopyOptions {
    bool compress = false;
    codec::Effort effort = codec::Effort::Fast;
    std::uint64_t sparse_bytes = 4096;  // runs of zeroes this long become holes; 0: never
    bool target_is_zero = true;         // a new image: zeroes need no writing
    bool skip_unallocated = false;      // the target has the same backing file
    bool salvage = false;               // unreadable ranges become zeroes
    std::uint64_t bytes_per_second = 0; // at most; 0: as fast as can be. Wants `unseen` false
    unsigned parallel = 0;              // chunks under way; 0: as many as keep the workers busy
    bool bulk = true;                   // the target is ours alone: place() may be used
    /// Data may reach the target unseen: shared by both files where the file system can, else
    /// moved by the kernel. Zeroes that the source does not know of are then found in samples.
    bool unseen = true;
    std::function<void(std::uint64_t bytes)> progress; // of the source, as they are done
    std::function<void(const std::string&)> warn;      // salvage
    const bool* stop = nullptr;                        // set by a signal
};

class Copier {
public:
    Copier(IoContext& context, Node& source, ImageNode& target, CopyOptions options);
    /// Copies [0, min of both sizes). Error Interrupted when `stop` was set.
    Task<void> run();

private:
    struct Chunk {
        std::uint64_t offset = 0;
        std::uint64_t length = 0;
        Extent extent;            // of the chunk's beginning, for plain reads
        bool plain = false;       // lies in one piece in a file that can be read past the nodes
        bool unseen = false;      // and is moved without a look at it
        std::uint64_t number = 0; // in the order of the source
    };
    /// One chunk to look at, or several to move.
    struct Batch {
        std::vector<Chunk> chunks;
        std::vector<Move> moves; // placed, in the order of the target
        bool empty() const { return chunks.empty() && moves.empty(); }
        bool unseen() const { return chunks.empty() || chunks.front().unseen; }
    };
    /// What a worker does to a chunk.
    struct Work {
        AlignedMemory memory; // of one lane, used again and again
        std::span<std::byte> bytes;
        std::vector<bool> zero;                     // per unit
        std::vector<std::vector<std::byte>> packed; // per unit; empty: stays plain
        Result<void> outcome;

        std::span<const std::byte> part(std::uint64_t index, std::uint64_t unit) const {
            const std::span<const std::byte> all = bytes;
            return all.subspan(index * unit,
                               std::min<std::uint64_t>(unit, all.size() - index * unit));
        }
    };

    Task<std::optional<Chunk>> next_chunk();
    Chunk chunk_of(const Extent& extent, std::uint64_t clear);
    Task<void> sample(Chunk& chunk);
    Task<Batch> next_batch();
    Task<void> place(Batch& batch);
    Task<void> try_sharing();
    Task<void> lane();
    Task<void> copy_batches();
    Task<void> store_in_turn(const Chunk& chunk, Work& work);
    Task<void> move_batch(const Batch& batch);
    Task<void> copy_chunk(const Chunk& chunk, Work& work);
    Task<void> read_chunk(const Chunk& chunk, Work& work);
    void look_at(const Chunk& chunk, Work& work) const;
    Task<void> store(const Chunk& chunk, Work& work);
    Task<void> store_compressed(const Chunk& chunk, Work& work);
    Task<void> store_range(const Chunk& chunk, Work& work, std::uint64_t begin, std::uint64_t end);
    Task<void> zero(std::uint64_t offset, std::uint64_t length);
    void done(std::uint64_t bytes);
    std::uint64_t unit() const;
    bool source_knows_holes() const;

    IoContext& context_;
    Node& source_;
    ImageNode& target_;
    CopyOptions options_;
    std::uint64_t size_;
    std::uint64_t next_ = 0;
    std::optional<Chunk> held_; // found, and not fit for the batch before it
    std::vector<Move> waiting_; // placed, and moved with the next batch
    const bool flat_;           // the source is the bytes of one file
    bool can_place_;
    bool can_move_;
    Ways ways_;
    bool shares_ = false;            // sharing has worked: there is nothing to be gained by looking
    std::uint64_t unseen_bytes_ = 0; // how much may be moved before the next sample
    bool dense_ = true;              // what was looked at last had no zeroes
    Work sample_;
    Pace pace_;
    bool ordered_;            // the target takes chunks in their order only
    std::uint64_t found_ = 0; // chunks
    Turns turns_;
    AsyncMutex finding_;
    AsyncMutex writing_; // one at a time writes: the kernel lets no more into one file
};

} // namespace doppel::block
