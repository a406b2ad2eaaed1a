// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A format node: a Node plus what a tool asks of an image. What a format cannot do ends in one
/// sentence. Owner thread only.
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "block/node.hpp"
#include "block/preallocation.hpp"

namespace doppel::block {

/// Creation options as given, names known to the format.
using OptionValues = std::map<std::string, std::string, std::less<>>;

/// A format's own facts in the order of printing, as in qemu-img's JSON (format-specific.data).
struct BitmapInfo {
    std::string name;
    std::uint64_t granularity_bytes = 0;
    bool recording = false;    // flag "auto": marks every write
    bool inconsistent = false; // flag "in-use": was not stored at the last close
};
/// A file that holds a part of the disk.
struct ExtentInfo {
    std::uint64_t size_bytes = 0; // of the part
    std::string file;
    std::uint64_t cluster_bytes = 0; // 0: none
    std::string format;
    bool compressed = false;
};
struct KeySlotInfo {
    bool active = false;
    std::uint64_t rounds = 0;
    std::uint64_t key_offset = 0;
    std::uint64_t stripes = 0;
};
/// LUKS, in QEMU's words.
struct EncryptionInfo {
    std::string cipher; // "aes-256"
    std::string cipher_mode;
    std::string iv_algorithm;
    std::string iv_hash; // empty: none
    std::string hash;
    std::string uuid;
    std::uint64_t payload_offset = 0;
    std::uint64_t master_key_rounds = 0;
    std::vector<KeySlotInfo> slots;
};
using FactValue = std::variant<bool, std::uint64_t, std::string, std::vector<BitmapInfo>,
                               std::vector<ExtentInfo>, EncryptionInfo>;
/// Encryption stands for facts of its own, or without a name for all the format's.
using Facts = std::vector<std::pair<std::string, FactValue>>;

struct ImageInfo {
    std::string backing_file;   // as written in the image; empty: none
    std::string backing_format; // empty: not recorded
    std::uint64_t cluster_bytes = 0;
    bool dirty = false;   // was not closed cleanly
    bool corrupt = false; // marked as such
    bool encrypted = false;
    bool compressed = false; // holds only compressed data by nature
    Facts facts;
};

struct SnapshotInfo {
    std::string id;
    std::string name;
    std::uint64_t vm_state_bytes = 0;
    std::int64_t time_ns = 0; // since 1970
    std::uint64_t vm_clock_ns = 0;
    std::uint64_t disk_bytes = 0;
    std::uint64_t icount = ~std::uint64_t{0}; // instructions executed; all ones: unknown
};

enum class Repair : std::uint8_t { None, Leaks, All };

struct CheckResult {
    std::uint64_t corruptions = 0;
    std::uint64_t leaks = 0;
    std::uint64_t check_errors = 0; // what could not be checked
    std::uint64_t corruptions_fixed = 0;
    std::uint64_t leaks_fixed = 0;
    std::uint64_t image_end_offset = 0;
    std::uint64_t total_clusters = 0; // of the virtual disk
    std::uint64_t allocated_clusters = 0;
    std::uint64_t fragmented_clusters = 0;
    std::uint64_t compressed_clusters = 0;
    std::vector<std::string> findings; // one sentence each; only the first kMaxFindings
    static constexpr std::size_t kMaxFindings = 100;

    void found_corruption(std::string text) {
        ++corruptions;
        if (findings.size() < kMaxFindings)
            findings.push_back(std::move(text));
    }
};

/// Persistent dirty bitmaps. Changes reach the image at close().
class BitmapStore {
public:
    virtual ~BitmapStore() = default;
    virtual std::vector<BitmapInfo> list() const = 0;
    virtual Result<void> add(const std::string& name, std::uint64_t granularity_bytes) = 0;
    virtual Result<void> remove(const std::string& name) = 0;
    virtual Result<void> clear(const std::string& name) = 0;
    virtual Result<void> set_recording(const std::string& name, bool recording) = 0;
    /// Marks in `target` what `source`, of this or another image of equal size, has marked.
    virtual Result<void> merge(const std::string& target, const BitmapStore& from,
                               const std::string& source) = 0;
    /// The bytes [begin, end) that the bitmap marks, side by side ones together.
    using MarkedRange = std::pair<std::uint64_t, std::uint64_t>;
    virtual Result<std::vector<MarkedRange>> marked(const std::string& name) const = 0;
};

/// Where a bulk writer puts data that it has announced.
struct Placement {
    std::uint64_t host = 0; // in the protocol node's file
    std::uint64_t length = 0;
};

/// A cluster that is stored compressed, for whoever decompresses it on a thread of his own.
struct CompressedPiece {
    std::uint64_t host = 0;
    std::uint64_t bytes = 0; // may pass the end of the stream, never the cluster's share
};

enum class CompressionKind : std::uint8_t { None, Deflate, Zstd, Zlib };

class ImageNode : public Node {
public:
    virtual ImageInfo info() const { return {}; }
    /// Whether other files are named in it that were opened along with it.
    virtual bool names_files() { return backing() != nullptr; }

    // Internal snapshots.
    virtual Task<std::vector<SnapshotInfo>> list_snapshots() {
        return ready<std::vector<SnapshotInfo>>({});
    }
    virtual Task<void> create_snapshot(std::string name, std::int64_t time_ns);
    virtual Task<void> apply_snapshot(std::string name);
    virtual Task<void> delete_snapshot(std::string name);
    /// A read-only node shows the snapshot's content from now on.
    virtual Task<void> view_snapshot(std::string name);

    /// Writes other names into the image; does not open them. Empty: no backing file.
    virtual Task<void> change_backing(std::string file, std::string format);
    /// Notes that the image behind this one was changed on purpose, where the format would take
    /// it for a wrong one otherwise.
    virtual Task<void> accept_backing() { return ready<void>({}); }
    /// Everything shows what lies behind it again: after its content was committed there.
    virtual Task<void> make_empty();
    /// Error Unsupported: the format has no check (exit code 63).
    virtual Task<CheckResult> check(Repair repair);
    virtual Task<void> amend(OptionValues options);
    /// Null: the format has none.
    virtual BitmapStore* bitmaps() { return nullptr; }

    /// Whether preallocate() can do that.
    virtual bool can_preallocate(Preallocation) const { return false; }
    /// What resize() has added behind `from` takes its space now; it still reads as zeroes.
    virtual Task<void> preallocate(std::uint64_t from, Preallocation how);

    // Bulk writing of a new image that nobody else uses (block/copy). The range is of whole
    // clusters (the last may pass the end) that hold nothing yet.

    /// Whether a new image reads as zeroes.
    virtual bool starts_as_zeroes() const { return true; }
    /// Whether file() holds the disk's bytes as they are: not compressed or encrypted as a whole.
    virtual bool plain_data() const { return true; }
    /// Allocates the range; the caller then writes the data to file() himself. Error Unsupported:
    /// write() is the only way.
    virtual Task<std::vector<Placement>> place(std::uint64_t offset, std::uint64_t length);
    virtual CompressionKind compression() const { return CompressionKind::None; }
    /// Written once, in ascending order, by nothing but write_compressed().
    virtual bool is_stream() const { return false; }
    /// Stores one cluster that the caller has compressed as compression() says.
    virtual Task<void> write_compressed(std::uint64_t offset, std::vector<std::byte> bytes);
    /// Where the compressed cluster at `offset` (of an Extent that says Compressed) lies.
    virtual Task<CompressedPiece> compressed_piece(std::uint64_t offset);

protected:
    std::unexpected<Error> cannot(const char* what) const;
    /// Whether the image may still be written.
    Result<void> require_whole() const;

    bool broken_ = false; // see AllOrNothing
};

} // namespace doppel::block
