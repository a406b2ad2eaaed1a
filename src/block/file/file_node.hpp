// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A file or block device of the host as a protocol node. A regular file grows by writes past its
/// end and reads zeroes there. Owner thread only.
#include <memory>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "block/async_lock.hpp"
#include "block/file/image_lock.hpp"
#include "block/io/io_context.hpp"
#include "block/node.hpp"

namespace doppel::block {

/// QEMU's names, docs/system/qemu-block-drivers: who caches, and whether a flush reaches the disk.
enum class CacheMode : std::uint8_t {
    WriteBack,    // host page cache; flush is honoured
    WriteThrough, // host page cache; each write is flushed
    None,         // O_DIRECT; flush is honoured
    DirectSync,   // O_DIRECT; each write is flushed
    Unsafe,       // host page cache; flush does nothing
};
/// "writeback", "writethrough", "none", "directsync", "unsafe".
Result<CacheMode> parse_cache_mode(const std::string& name);

enum class Sharing : std::uint8_t {
    Locked, // other writers are refused, and we are where one is at work
    Forced, // no lock; only for reading
};

struct FileOptions {
    Access access = Access::ReadOnly;
    CacheMode cache = CacheMode::WriteBack;
    Sharing sharing = Sharing::Locked;
};

/// What a file system that knows of it does with a new file; others go without.
struct FileHints {
    bool no_copy_on_write = false;  // chattr +C, btrfs
    std::uint64_t extent_bytes = 0; // allocate in pieces of this size, XFS; 0: as it likes
};

class FileNode final : public Node {
public:
    /// Errors name the path: it is missing, a directory or another kind of file that holds no
    /// image, not permitted, read-only, in use by another process.
    static Result<std::unique_ptr<FileNode>> open(IoContext& context, const std::string& path,
                                                  const FileOptions& options);
    /// A new, empty file; an old one is emptied, but not while somebody uses it.
    static Result<std::unique_ptr<FileNode>> create(IoContext& context, const std::string& path,
                                                    CacheMode cache = CacheMode::WriteBack,
                                                    const FileHints& hints = {});

    std::string driver() const override { return is_device_ ? "host_device" : "file"; }
    std::string name() const override { return path_; }
    std::uint64_t size() const override { return size_; }
    Limits limits() const override { return {alignment_, alignment_, 0}; }
    bool read_only() const override { return options_.access == Access::ReadOnly; }
    bool fixed_size() const override { return is_device_; }

    Task<void> read(std::uint64_t offset, IoBuffer into) override;
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override;
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override;
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override;
    Task<void> flush() override;
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override;
    Task<void> resize(std::uint64_t size_bytes) override;
    Task<void> close() override;

    /// Who writes by it flushes himself.
    std::optional<int> descriptor() const override { return fd_.get(); }
    std::optional<std::uint64_t> allocated_bytes() const override;
    bool direct() const noexcept { return alignment_ > 1; }
    /// Reserves space for the range, which keeps its content. Error Unsupported where the file
    /// system cannot.
    Task<void> allocate(std::uint64_t offset, std::uint64_t length);

private:
    FileNode(IoContext& context, base::UniqueFd fd, std::string path, const FileOptions& options);
    Result<void> inspect();
    Task<void> transfer(FileOperation::Kind kind, std::uint64_t offset, IoBuffer buffer);
    Task<void> read_unaligned(std::uint64_t offset, IoBuffer into);
    Task<void> write_unaligned(std::uint64_t offset, IoBuffer from);
    Task<void> write_zero_bytes(std::uint64_t offset, std::uint64_t length);
    Task<void> extend(std::uint64_t end);
    Task<bool> try_allocate(int mode, std::uint64_t offset, std::uint64_t length);
    Task<void> after_write(std::uint64_t end, Durability durability);
    void changing();
    bool fits_alignment(std::uint64_t offset, const IoBuffer& buffer) const;

    IoContext& context_;
    base::UniqueFd fd_;
    std::string path_;
    FileOptions options_;
    bool is_device_ = false;
    std::uint64_t size_ = 0;
    std::uint32_t alignment_ = 1; // O_DIRECT's
    bool in_memory_ = false;      // tmpfs: nothing to wait for
    bool can_punch_ = true;
    bool can_zero_ = true;
    bool unflushed_ = false; // changed since the last flush
    RangeLock unaligned_;    // read-modify-write against writes to its neighbours
    // The extent found last; forgotten by every change, so that runs of status() seek once.
    struct Known {
        std::uint64_t begin = 0, end = 0;
        bool data = true;
    } known_;
};

} // namespace doppel::block
