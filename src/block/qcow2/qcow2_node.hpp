// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A qcow2 image. Guest requests hold the range of clusters they touch: shared to read or to
/// overwrite in place, exclusive to allocate, zero or discard. Metadata changes in memory under one
/// lock, and reaches the file by commit(), in an order in which a power cut between any two writes
/// leaves an image without corruption:
///
///     guest data, refcounts ─flush─ refcount table ─flush─ L2 tables ─flush─ L1 ─flush─ frees
///
/// What changes the whole image at once (snapshots) changes copies, which one write of the header's
/// first sector makes count.
///
/// A cluster that was freed keeps its refcount until the last flush, so nobody reuses it while a
/// durable table may still point to it.
///
/// Owner thread only.
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "block/async_lock.hpp"
#include "block/crypto/cipher_node.hpp"
#include "block/crypto/luks_options.hpp"
#include "block/format.hpp"
#include "block/image_node.hpp"
#include "block/qcow2/bitmap_list.hpp"
#include "block/qcow2/layout.hpp"
#include "block/qcow2/refcounts.hpp"
#include "block/qcow2/snapshot_table.hpp"
#include "block/table_cache.hpp"

namespace doppel::block::qcow2 {

class Qcow2Node final : public ImageNode {
public:
    static Task<std::unique_ptr<Qcow2Node>> open(OpenRequest request);

    std::string driver() const override { return "qcow2"; }
    std::string name() const override { return file_->name(); }
    std::uint64_t size() const override { return header_.size_bytes; }
    Limits limits() const override { return {1, 1, geometry_.cluster()}; }
    bool read_only() const override { return options_.access == Access::ReadOnly; }

    Task<void> read(std::uint64_t offset, IoBuffer into) override;
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override;
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override;
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override;
    Task<void> flush() override;
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override;
    Task<void> resize(std::uint64_t size_bytes) override;
    Task<void> close() override;
    Node* file() override { return file_.get(); }
    Node* backing() override { return backing_.get(); }
    std::optional<std::uint64_t> allocated_bytes() const override;
    ImageInfo info() const override;

    Task<std::vector<SnapshotInfo>> list_snapshots() override;
    Task<void> create_snapshot(std::string name, std::int64_t time_ns) override;
    Task<void> apply_snapshot(std::string name) override;
    Task<void> delete_snapshot(std::string name) override;
    Task<void> view_snapshot(std::string name) override;
    Task<void> change_backing(std::string file, std::string format) override;
    Task<void> make_empty() override;
    Task<CheckResult> check(Repair repair) override;
    Task<void> amend(OptionValues options) override;
    BitmapStore* bitmaps() override { return header_.version < 3 ? nullptr : &bitmaps_; }

    /// From now on data is encrypted. Only a new image, before anything is written.
    Task<void> encrypt(crypto::LuksOptions options, Secret passphrase);

    // For bulk writers of an image that nobody else uses yet (block/copy).
    bool plain_data() const override {
        return header_.crypt_method == kCryptNone && !header_.external_data();
    }
    Task<std::vector<Placement>> place(std::uint64_t offset, std::uint64_t length) override;
    CompressionKind compression() const override;
    Task<void> write_compressed(std::uint64_t offset, std::vector<std::byte> bytes) override;
    Task<CompressedPiece> compressed_piece(std::uint64_t offset) override;
    bool can_preallocate(Preallocation) const override { return true; }
    Task<void> preallocate(std::uint64_t from, Preallocation how) override;

private:
    struct Run { // clusters (or subclusters) of one kind, side by side in the file
        Kind kind = Kind::Unallocated;
        std::uint64_t length = 0;
        Entry entry;            // of the first cluster
        std::uint64_t host = 0; // of the first byte; Data only
        bool writable = false;  // Data that nobody shares
    };
    struct Freed {
        std::uint64_t first = 0; // cluster number
        std::uint64_t count = 0;
        bool discard = false;
    };

    Qcow2Node(OpenRequest& request, Header header, std::vector<std::uint64_t> l1,
              std::vector<std::uint64_t> reftable);

    // opening.cpp
    Task<void> load_snapshots();
    Task<void> open_files(ImageOpener& opener);
    Task<void> prepare_for_writing();

    // encrypting.cpp
    Task<void> open_encryption();
    Result<void> use_cipher();
    Result<void> require_unlocked() const;
    Task<void> change_keys(OptionValues values);

    // mapping.cpp
    Kind kind_of(const Entry& entry, unsigned subcluster) const;
    bool has_host(const Entry& entry) const;
    Task<void> check_entry(Entry entry, std::uint64_t offset);
    Result<std::uint64_t> l2_table(std::uint64_t offset) const; // 0: none
    std::uint64_t l2_slice(std::uint64_t table, std::uint64_t offset) const;
    Entry entry_in(const std::byte* slice, std::uint64_t offset) const;
    void store_entry(std::byte* slice, std::uint64_t offset, const Entry& entry) const;
    Task<Run> find_run(std::uint64_t offset, std::uint64_t length);
    Run run_in_slice(const std::byte* slice, std::uint64_t offset, std::uint64_t length) const;
    Task<Entry> entry_at(std::uint64_t offset);

    // reading.cpp
    Task<void> read_mapped(std::uint64_t offset, IoBuffer into);
    Task<void> read_behind(std::uint64_t offset, IoBuffer into);
    Task<void> read_compressed(const Entry& entry, std::uint64_t offset, IoBuffer into);
    Task<void> decompress(const Entry& entry, std::span<std::byte> out);

    // writing.cpp
    struct Plan { // an allocating write: `count` clusters from `guest` on go to `host`
        std::uint64_t guest = 0;
        std::uint64_t count = 0;
        std::uint64_t host = 0;
        bool reused = false; // the cluster was there, unshared, but not (fully) in use
        bool fresh = false;  // behind all that was ever written: reads as zeroes
        std::vector<Entry> old;
    };
    Task<std::uint64_t> write_some(std::uint64_t offset, IoBuffer from);
    Task<std::uint64_t> write_allocating(std::uint64_t offset, IoBuffer from);
    Task<Plan> plan_write(std::uint64_t offset, std::uint64_t length);
    Task<void> choose_hosts(Plan& plan);
    Task<void> write_planned(const Plan& plan, std::uint64_t offset, IoBuffer from);
    std::uint64_t cow_begin(const Plan& plan, std::uint64_t offset) const;
    std::uint64_t cow_end(const Plan& plan, std::uint64_t end) const;
    Task<void> link(const Plan& plan, std::uint64_t begin, std::uint64_t end);
    Entry linked_entry(const Plan& plan, std::uint64_t index, std::uint64_t begin,
                       std::uint64_t end) const;
    Task<void> undo(const Plan& plan);
    Result<void> check_overlap(std::uint64_t host, std::uint64_t length);
    Task<std::byte*> writable_slice(std::uint64_t offset);
    Task<void> new_l2_table(std::uint64_t l1_index);
    Task<void> set_entry(std::uint64_t offset, Entry entry);
    void free_entry(const Entry& entry, bool discard);
    void free_later(std::uint64_t first, std::uint64_t count, bool discard);
    Task<std::uint64_t> allocate_metadata(std::uint64_t bytes);
    bool moved(const Entry& old) const;

    // placing.cpp
    Task<bool> make_room(std::uint64_t bytes);
    Task<std::uint64_t> pack(std::uint64_t bytes);
    Task<void> release_packing();
    Task<std::uint64_t> preallocate_some(std::uint64_t at, std::uint64_t count, Preallocation how);

    // zeroing.cpp
    enum class Emptying : std::uint8_t { Discard, ZeroKeep, ZeroUnmap, Unallocate };
    Task<void> empty_clusters(std::uint64_t begin, std::uint64_t end, Emptying how);
    Task<void> empty_range(std::uint64_t begin, std::uint64_t end, Emptying how);
    std::optional<Entry> emptied(const Entry& entry, Emptying how) const;
    Task<void> zero_part(std::uint64_t offset, std::uint64_t length);
    Task<void> zero_subclusters(std::uint64_t offset, std::uint64_t length);
    Task<void> zero_external(std::uint64_t offset, std::uint64_t length);

    // transaction.cpp
    Result<void> require_writable() const;
    Task<void> commit();
    Task<void> commit_all();
    Task<void> commit_if_pressed();
    Task<void> write_l1();
    Task<void> release_freed();
    Task<void> set_incompatible(std::uint64_t bits);
    Task<void> write_header();
    Task<void> before_allocation();
    Task<void> mark_corrupt();
    bool metadata_dirty() const;

    // resizing.cpp
    Task<void> grow_l1(std::uint64_t entries);
    Task<void> grow(std::uint64_t size_bytes);
    Task<void> shrink(std::uint64_t size_bytes);
    Task<void> replace_l1(std::vector<std::uint64_t> table);

    // amending.cpp
    Task<void> rewrite_header();
    Task<void> change_refcount_width(unsigned order);
    Task<void> change_version(std::uint32_t version);
    std::string obstacle_to_version_2(unsigned refcount_order) const;
    Task<void> expand_zeroes();

    // snapshots.cpp
    Task<void> detach_tables();
    Task<void> detach_table(std::uint64_t l1_index);
    Task<void> attach_tables(std::vector<Snapshot> snapshots);
    Task<std::uint64_t> write_to_new_place(std::vector<std::byte> bytes);
    std::vector<std::byte> l1_bytes() const;
    Task<std::vector<std::uint64_t>> read_l1(std::uint64_t offset, std::uint64_t entries);
    Task<void> add_references(const std::vector<std::uint64_t>& l1, int delta);
    Task<void> add_table_references(std::uint64_t table, int delta);
    Task<void> refresh_copied();
    Task<void> refresh_table(std::uint64_t l1_index);
    Task<bool> refreshed_entry(Entry& entry);
    Result<std::size_t> find_snapshot(const std::string& name) const;

    friend class Checker;
    friend class BitmapList;

    IoContext& context_;
    ImageOptions options_;
    std::unique_ptr<Node> file_;
    std::unique_ptr<Node> data_file_;            // only with external data
    Node* data_;                                 // where guest data lies, in the clear
    std::unique_ptr<crypto::LuksVolume> luks_;   // only of an encrypted image
    std::unique_ptr<crypto::CipherNode> cipher_; // data_, once it is unlocked
    std::unique_ptr<Node> backing_;
    Header header_;
    Geometry geometry_;
    std::vector<std::uint64_t> l1_; // in host byte order
    std::vector<Snapshot> snapshots_;

    RangeLock guests_;
    AsyncMutex metadata_;
    TableCache l2_;
    Refcounts refcounts_;
    std::set<std::uint64_t> dirty_l1_; // indices
    std::set<std::uint64_t> detached_; // L2 tables that nothing on disk names yet
    std::vector<Freed> freed_;
    bool barrier_ = false;         // data or refcounts must be durable before the L2 tables
    std::uint64_t fresh_from_ = 0; // file offset from which nothing was ever written
    bool can_be_fresh_ = false;    // the protocol node reads zeroes past its end
    bool dirty_marked_ = false;    // the dirty bit is set on disk, by us
    bool corrupt_ = false;         // found at work: nothing is written any more

    // Compressed clusters are packed into a run of host clusters: the next one begins at
    // packed_at_; nothing lies behind packed_used_, a cluster's boundary, yet.
    std::uint64_t packed_at_ = 0;
    std::uint64_t packed_used_ = 0;
    std::uint64_t packed_end_ = 0;

    struct Unpacked { // the compressed cluster read last
        std::uint64_t word = 0;
        AlignedMemory bytes;
    } unpacked_;

    BitmapList bitmaps_;
};

const Format& format();

} // namespace doppel::block::qcow2
