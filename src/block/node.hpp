// SPDX-License-Identifier: Apache-2.0
#pragma once
/// One node of the block graph: a range of bytes behind a small asynchronous interface. Protocol
/// nodes (file, host device, memory) keep the bytes; format nodes (raw, qcow2 …) map them onto the
/// protocol node below them, which they own; filters change what passes.
///
/// Owner thread only: the thread of the event loop on which the node was opened submits and is
/// called back. Other threads post to that loop. Requests may overlap in time; two that overlap in
/// range and are not both reads leave either content, as on a real disk.
/// Ranges lie inside size(): callers check, nodes verify.
#include <cstdint>
#include <optional>
#include <string>

#include "block/io_buffer.hpp"
#include "block/task.hpp"

namespace doppel::block {

enum class Durability : std::uint8_t {
    Cached,  // durable after the next flush()
    Durable, // FUA: durable when the request completes
};

enum class Unmap : std::uint8_t {
    Keep,  // the space stays reserved
    Allow, // the space may be given back
};

struct Limits {
    std::uint32_t request_alignment = 1; // offsets and lengths below it cost a read-modify-write
    std::uint32_t memory_alignment = 1;  // buffers below it are copied
    std::uint64_t cluster_bytes = 0;     // unit of allocation; 0: none
};

enum class Content : std::uint8_t {
    Data,       // read the bytes
    Zero,       // reads as zeroes, known without reading
    Compressed, // data, stored compressed
};

class Node;

/// What a range holds, from its beginning for `length` bytes.
struct Extent {
    std::uint64_t length = 0;
    Content content = Content::Data;
    bool allocated = true;             // this node decides the content, not what stands behind it
    std::uint32_t depth = 0;           // how many backing files down the content was found
    std::optional<std::uint64_t> host; // where it lies in `place`, when it lies plain
    Node* place = nullptr;             // the protocol node that holds it
    bool present = true;               // some image of the chain decides the content
};

class Node {
public:
    virtual ~Node() = default;

    /// "file", "raw", "qcow2": the driver's name as the user writes it.
    virtual std::string driver() const = 0;
    /// For messages: the path or a description.
    virtual std::string name() const = 0;
    /// Bytes.
    virtual std::uint64_t size() const = 0;
    virtual Limits limits() const { return {}; }
    virtual bool read_only() const = 0;
    /// Of a protocol node: it cannot grow, and what nobody wrote need not read as zeroes.
    virtual bool fixed_size() const { return false; }

    virtual Task<void> read(std::uint64_t offset, IoBuffer into) = 0;
    virtual Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) = 0;
    virtual Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                                    Durability durability) = 0;
    /// A hint: afterwards the range reads as before or as zeroes.
    virtual Task<void> discard(std::uint64_t offset, std::uint64_t length) = 0;
    /// Everything that completed before is durable afterwards.
    virtual Task<void> flush() = 0;
    /// The extent at `offset`, no longer than `length` (> 0).
    virtual Task<Extent> status(std::uint64_t offset, std::uint64_t length) = 0;
    /// Changes size(); what is added reads as zeroes.
    virtual Task<void> resize(std::uint64_t size_bytes) = 0;
    /// Writes back what is cached, marks the image clean, and makes all of it durable, as flush()
    /// does; no request follows. Whoever owns the node calls it; the destructor alone leaves what a
    /// power cut would leave.
    virtual Task<void> close() { return ready<void>({}); }

    /// The protocol node below a format node, and the image that shows where this one has nothing.
    virtual Node* file() { return nullptr; }
    virtual Node* backing() { return nullptr; }
    /// A descriptor whose bytes are exactly this node's, for bulk copies on worker threads.
    virtual std::optional<int> descriptor() const { return std::nullopt; }
    /// Bytes in use on the host, when that can be known.
    virtual std::optional<std::uint64_t> allocated_bytes() const { return std::nullopt; }
};

} // namespace doppel::block
