// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Copies one image to another: the loop's thread sees to the metadata, worker threads read, look
/// for zeroes, compress and write. Owner thread only.
#include <functional>
#include <memory>

#include "block/async_lock.hpp"
#include "block/codec/codec.hpp"
#include "block/image_node.hpp"
#include "block/io/io_context.hpp"

namespace doppel::block {

struct CopyOptions {
    bool compress = false;
    codec::Effort effort = codec::Effort::Fast;
    std::uint64_t sparse_bytes = 4096; // runs of zeroes this long become holes; 0: never
    bool target_is_zero = true;        // a new image: zeroes need no writing
    bool skip_unallocated = false;     // the target has the same backing file
    bool salvage = false;              // unreadable ranges become zeroes
    unsigned parallel = 0;             // chunks under way; 0: as many as keep the workers busy
    bool bulk = true;                  // the target is ours alone: place() may be used
    bool share = true;                 // let both files share extents where the file system can
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
        Extent extent; // of the chunk's beginning, for plain reads
        bool plain = false;
    };
    struct Work; // what a worker does to a chunk

    Task<bool> next_chunk(Chunk& chunk);
    Task<void> lane();
    Task<void> copy_chunk(const Chunk& chunk, Work& work);
    Task<void> read_chunk(const Chunk& chunk, Work& work);
    Task<void> store(const Chunk& chunk, Work& work);
    Task<void> store_compressed(const Chunk& chunk, Work& work);
    Task<void> store_range(const Chunk& chunk, Work& work, std::uint64_t begin, std::uint64_t end);
    Task<bool> share_chunk(const Chunk& chunk);
    Task<void> zero(std::uint64_t offset, std::uint64_t length);
    void done(std::uint64_t bytes);
    std::uint64_t unit() const;

    IoContext& context_;
    Node& source_;
    ImageNode& target_;
    CopyOptions options_;
    std::uint64_t size_;
    std::uint64_t next_ = 0;
    bool can_place_;
    bool can_share_;
    AsyncMutex finding_;
};

} // namespace doppel::block
