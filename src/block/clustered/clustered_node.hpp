// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What the formats share that cut the disk into equal clusters and say by a table where each lies
/// (VDI, VHD, VHDX, VMDK, QED, Parallels): reading, writing, zeroes, status, bulk placing. The
/// format keeps the table.
///
/// Guest requests hold the range of clusters they touch: shared to read or to overwrite in place,
/// exclusive to allocate. Metadata changes in memory under one lock and reaches the file by
/// commit(), in an order in which a power cut costs at worst space that nobody uses:
///
///     guest data, the file's new length, write_ahead() ─flush─ write_tables() ─flush─
///
/// Owner thread only.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "block/async_lock.hpp"
#include "block/format.hpp"
#include "block/image_node.hpp"

namespace doppel::block {

enum class ClusterKind : std::uint8_t {
    Absent,     // what stands behind the image shows
    Zero,       // reads as zeroes, whatever stands behind
    Data,       // lies in the file
    Partial,    // some sectors lie in the file, the others are absent
    Compressed, // its stream lies in the file
};

/// Clusters of one kind, those in the file side by side.
struct ClusterRun {
    ClusterKind kind = ClusterKind::Absent;
    std::uint64_t host = 0;  // Data, Partial, Compressed: where in the file the first one begins
    std::uint64_t count = 1; // Partial, Compressed: 1
};

class ClusteredNode : public ImageNode {
public:
    std::string name() const override { return file_->name(); }
    std::uint64_t size() const override { return size_bytes_; }
    Limits limits() const override;
    bool read_only() const override { return options_.access == Access::ReadOnly; }

    Task<void> read(std::uint64_t offset, IoBuffer into) override;
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override;
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override;
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override;
    Task<void> flush() override;
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override;
    Task<void> close() override;
    Node* file() override { return file_.get(); }
    Node* backing() override { return backing_.get(); }
    std::optional<std::uint64_t> allocated_bytes() const override {
        return file_->allocated_bytes();
    }
    Task<std::vector<Placement>> place(std::uint64_t offset, std::uint64_t length) override;
    Task<void> make_empty() override;

protected:
    struct Space {
        std::uint64_t host = 0;
        std::uint64_t count = 1; // clusters, at most as many as were wanted
        bool fresh = true;       // nothing was ever written there: reads as zeroes
    };
    struct SectorRun {
        bool present = false;
        std::uint64_t count = 1;
    };

    ClusteredNode(OpenRequest& request, std::uint64_t size_bytes, std::uint64_t cluster_bytes,
                  std::uint32_t sector_bytes = 512);

    // What a format adds. Those below find() are called with the metadata lock held.

    /// The clusters from `index` on; not more than `most`, perhaps fewer than there are.
    virtual Task<ClusterRun> find(std::uint64_t index, std::uint64_t most) = 0;
    /// Of a Partial cluster at `host`: the sectors from `first` on.
    virtual Task<SectorRun> find_sectors(std::uint64_t index, std::uint64_t host,
                                         std::uint64_t first, std::uint64_t most);
    /// The bytes of a Compressed cluster.
    virtual Task<void> unpack(std::uint64_t index, std::uint64_t host, std::span<std::byte> out);

    /// Space for `count` clusters from `index` on, in no table yet.
    virtual Task<Space> allocate(std::uint64_t index, std::uint64_t count);
    /// Takes back space that was never linked.
    virtual void give_back(const Space& space);
    /// Enters clusters into the table in memory: Data, Partial, Zero, Absent.
    virtual Task<void> link(std::uint64_t index, ClusterRun run);
    /// Marks sectors of a Partial cluster as present.
    virtual Task<void> mark_sectors(std::uint64_t index, std::uint64_t host, std::uint64_t first,
                                    std::uint64_t count);
    virtual bool tables_dirty() const { return false; }
    /// Writes what must be durable before the tables, along with the guest's data.
    virtual Task<void> write_ahead() { return ready<void>({}); }
    /// Writes the tables. What they refer to is durable.
    virtual Task<void> write_tables() { return ready<void>({}); }
    /// Before the first change since the image was opened.
    virtual Task<void> begin_writing() { return ready<void>({}); }
    /// After the last: everything is committed.
    virtual Task<void> end_writing() { return ready<void>({}); }
    /// The tables on disk refer to no cluster: the file may shrink.
    virtual Task<void> release_all() { return ready<void>({}); }

    /// Whether the file below is asked for holes where this image has data: where the table says
    /// nothing about what was ever written.
    virtual bool holes_count() const { return false; }
    virtual bool has_zero_state() const { return false; }
    /// Whether a new cluster over a backing file is Partial rather than filled up from there.
    virtual bool tracks_sectors() const { return false; }

    // For formats.
    Task<void> before_writing();    // whoever changes the image himself
    Task<void> commit();            // the metadata lock is held
    std::uint64_t clusters() const; // of the disk
    std::uint64_t within(std::uint64_t offset) const { return offset & (cluster_bytes_ - 1); }
    std::uint64_t align_up(std::uint64_t offset) const;
    std::uint64_t align_down(std::uint64_t offset) const { return offset - within(offset); }
    /// Opens what stands behind the image.
    Task<void> open_backing(ImageOpener& opener, std::string written, std::string format);
    /// Before the disk grows, once the table has room: zeroes where a longer backing file would
    /// show.
    Task<void> hide_parent(std::uint64_t new_size);
    /// Reads a range as if this image were empty.
    Task<void> read_behind(std::uint64_t offset, IoBuffer into);
    std::unexpected<Error> corrupt(std::string text) const;

    IoContext& context_;
    ImageOptions options_;
    std::unique_ptr<Node> file_;
    std::unique_ptr<Node> backing_;
    std::uint64_t size_bytes_;
    std::uint64_t cluster_bytes_; // a power of two
    std::uint32_t sector_bytes_;
    std::uint64_t file_end_ = 0; // where the file must reach at the next commit
    RangeLock guests_;
    AsyncMutex metadata_;

private:
    struct Piece { // of the disk, of one kind; Partial is resolved
        ClusterKind kind = ClusterKind::Absent;
        std::uint64_t length = 0;
        std::uint64_t host = 0; // of its first byte; Compressed: of the stream
    };
    struct Run { // whole clusters; Partial is not resolved
        ClusterRun clusters;
        std::uint64_t length = 0; // from the offset asked for
    };
    Task<Run> find_run(std::uint64_t offset, std::uint64_t length);
    Task<Piece> find_piece(std::uint64_t offset, std::uint64_t length);
    Task<void> read_mapped(std::uint64_t offset, IoBuffer into);
    Task<void> read_compressed(std::uint64_t host, std::uint64_t offset, IoBuffer into);
    bool shows_zeroes(const Run& run, std::uint64_t offset) const;

    Task<std::uint64_t> write_some(std::uint64_t offset, IoBuffer from);
    Task<std::uint64_t> write_exclusive(std::uint64_t offset, IoBuffer from);
    Task<std::uint64_t> write_new(const Run& run, std::uint64_t offset, IoBuffer from);
    Task<void> fill_around(const Run& run, Space space, std::uint64_t offset, std::uint64_t length);
    Task<void> fill(const Run& run, bool fresh, std::uint64_t begin, std::uint64_t end,
                    std::uint64_t host);
    Task<void> write_new_partial(std::uint64_t offset, IoBuffer from);
    Task<void> write_sectors(std::uint64_t host, std::uint64_t offset, IoBuffer from);
    Task<void> mark_range(std::uint64_t host, std::uint64_t offset, std::uint64_t length);
    Task<std::uint64_t> zero_some(std::uint64_t offset, std::uint64_t length, Unmap unmap);
    Task<std::uint64_t> zero_absent(std::uint64_t offset, std::uint64_t length);
    Task<Placement> place_some(std::uint64_t offset, std::uint64_t length);

    bool writing_ = false; // begin_writing() has been called
    struct Unpacked {
        std::uint64_t host = ~std::uint64_t{0};
        std::vector<std::byte> bytes;
    } unpacked_; // the compressed cluster that was read last
};

} // namespace doppel::block
