// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The NBD protocol's numbers and fixed-size messages (doc/proto.md of NetworkBlockDevice/nbd, as
/// of 2023: fixed newstyle, structured replies, metadata contexts). Everything is big-endian. Names
/// are the document's, so that a search finds them. Any thread.
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.hpp"

namespace doppel::block::nbd {

constexpr std::uint64_t NBDMAGIC = 0x4e42444d41474943;
constexpr std::uint64_t IHAVEOPT = 0x49484156454f5054;
constexpr std::uint64_t OPTION_REPLY_MAGIC = 0x0003e889045565a9;
constexpr std::uint32_t REQUEST_MAGIC = 0x25609513;
constexpr std::uint32_t SIMPLE_REPLY_MAGIC = 0x67446698;
constexpr std::uint32_t STRUCTURED_REPLY_MAGIC = 0x668e33ef;

namespace handshake {
constexpr std::uint16_t FIXED_NEWSTYLE = 1;
constexpr std::uint16_t NO_ZEROES = 2;
} // namespace handshake

enum class Option : std::uint32_t {
    EXPORT_NAME = 1,
    ABORT = 2,
    LIST = 3,
    STARTTLS = 5,
    INFO = 6,
    GO = 7,
    STRUCTURED_REPLY = 8,
    LIST_META_CONTEXT = 9,
    SET_META_CONTEXT = 10,
};

enum class OptionReply : std::uint32_t {
    ACK = 1,
    SERVER = 2,
    INFO = 3,
    META_CONTEXT = 4,
    ERR_UNSUP = 0x80000001,
    ERR_POLICY = 0x80000002,
    ERR_INVALID = 0x80000003,
    ERR_PLATFORM = 0x80000004,
    ERR_TLS_REQD = 0x80000005,
    ERR_UNKNOWN = 0x80000006,
    ERR_SHUTDOWN = 0x80000007,
    ERR_BLOCK_SIZE_REQD = 0x80000008,
    ERR_TOO_BIG = 0x80000009,
};
constexpr bool is_error(OptionReply reply) {
    return (static_cast<std::uint32_t>(reply) & 0x80000000) != 0;
}

enum class Info : std::uint16_t { EXPORT = 0, NAME = 1, DESCRIPTION = 2, BLOCK_SIZE = 3 };

namespace transmission { // flags of an export
constexpr std::uint16_t HAS_FLAGS = 1;
constexpr std::uint16_t READ_ONLY = 2;
constexpr std::uint16_t SEND_FLUSH = 4;
constexpr std::uint16_t SEND_FUA = 8;
constexpr std::uint16_t SEND_TRIM = 32;
constexpr std::uint16_t SEND_WRITE_ZEROES = 64;
constexpr std::uint16_t SEND_DF = 128;
constexpr std::uint16_t CAN_MULTI_CONN = 256;
} // namespace transmission

enum class Command : std::uint16_t {
    READ = 0,
    WRITE = 1,
    DISC = 2,
    FLUSH = 3,
    TRIM = 4,
    CACHE = 5,
    WRITE_ZEROES = 6,
    BLOCK_STATUS = 7,
};

namespace command_flag {
constexpr std::uint16_t FUA = 1;
constexpr std::uint16_t NO_HOLE = 2;
constexpr std::uint16_t DF = 4;
constexpr std::uint16_t REQ_ONE = 8;
} // namespace command_flag

constexpr std::uint16_t REPLY_FLAG_DONE = 1;
enum class ReplyType : std::uint16_t {
    NONE = 0,
    OFFSET_DATA = 1,
    OFFSET_HOLE = 2,
    BLOCK_STATUS = 5,
    ERROR = 0x8001,
    ERROR_OFFSET = 0x8002,
};

namespace state { // base:allocation
constexpr std::uint32_t HOLE = 1;
constexpr std::uint32_t ZERO = 2;
} // namespace state

/// On the wire; the values are Linux's, whatever the host.
enum class WireError : std::uint32_t {
    None = 0,
    EPERM_ = 1,
    EIO_ = 5,
    ENOMEM_ = 12,
    EINVAL_ = 22,
    ENOSPC_ = 28,
    EOVERFLOW_ = 75,
    ENOTSUP_ = 95,
    ESHUTDOWN_ = 108,
};

constexpr std::size_t kMaxName = 4096;             // of exports and contexts
constexpr std::size_t kMaxOptionBytes = 64u << 10; // what an option may carry
constexpr std::uint32_t kMaxPayload = 32u << 20;   // of one READ or WRITE
constexpr std::uint32_t kMaxExtents = 2048;        // in one answer
constexpr std::string_view kBaseAllocation = "base:allocation";

struct Request {
    static constexpr std::size_t kBytes = 28;
    std::uint16_t flags = 0;
    Command command = Command::READ;
    std::uint64_t cookie = 0;
    std::uint64_t offset = 0;
    std::uint32_t length = 0;

    /// False: the magic number is wrong.
    bool parse(const std::byte* from) {
        flags = base::load_be<std::uint16_t>(from + 4);
        command = static_cast<Command>(base::load_be<std::uint16_t>(from + 6));
        cookie = base::load_be<std::uint64_t>(from + 8);
        offset = base::load_be<std::uint64_t>(from + 16);
        length = base::load_be<std::uint32_t>(from + 24);
        return base::load_be<std::uint32_t>(from) == REQUEST_MAGIC;
    }
    void store(std::byte* to) const {
        base::store_be(to, REQUEST_MAGIC);
        base::store_be(to + 4, flags);
        base::store_be(to + 6, static_cast<std::uint16_t>(command));
        base::store_be(to + 8, cookie);
        base::store_be(to + 16, offset);
        base::store_be(to + 24, length);
    }
};

/// A message under construction: numbers big-endian, one after the other.
class Writer {
public:
    template <std::unsigned_integral T> Writer& put(T value) {
        std::array<std::byte, sizeof(T)> field{};
        base::store_be(field.data(), value);
        bytes_.insert(bytes_.end(), field.begin(), field.end());
        return *this;
    }
    Writer& text(std::string_view text) {
        const auto* from = reinterpret_cast<const std::byte*>(text.data());
        bytes_.insert(bytes_.end(), from, from + text.size());
        return *this;
    }
    Writer& zeroes(std::size_t count) {
        bytes_.resize(bytes_.size() + count);
        return *this;
    }
    std::vector<std::byte> take() { return std::move(bytes_); }

private:
    std::vector<std::byte> bytes_;
};

/// Takes a message apart; what is missing reads as zero and shows in ok().
class Reader {
public:
    explicit Reader(std::span<const std::byte> bytes) : bytes_{bytes} {}
    template <std::unsigned_integral T> T get() {
        if (bytes_.size() < sizeof(T)) {
            ok_ = false;
            bytes_ = {};
            return 0;
        }
        const auto value = base::load_be<T>(bytes_.data());
        bytes_ = bytes_.subspan(sizeof(T));
        return value;
    }
    std::string text(std::size_t length) {
        if (bytes_.size() < length) {
            ok_ = false;
            bytes_ = {};
            return {};
        }
        std::string text{reinterpret_cast<const char*>(bytes_.data()), length};
        bytes_ = bytes_.subspan(length);
        return text;
    }
    std::string rest() { return text(bytes_.size()); }
    std::size_t left() const noexcept { return bytes_.size(); }
    bool ok() const noexcept { return ok_; }
    /// Everything was there, and nothing is left.
    bool complete() const noexcept { return ok_ && bytes_.empty(); }

private:
    std::span<const std::byte> bytes_;
    bool ok_ = true;
};

} // namespace doppel::block::nbd
