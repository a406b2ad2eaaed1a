// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A disk for tests that remembers the order of what happened to it: afterwards it can say what
/// might be on it had the power failed at any moment, and it can fail on request. It holds an image
/// and, by their names, the other files that the image is made of. Owner thread only. The disk
/// outlives the nodes that open it.
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "block/node.hpp"

namespace doppel::block {

/// The image itself has no name.
using SimFiles = std::map<std::string, std::vector<std::byte>, std::less<>>;

class SimDisk {
public:
    static constexpr std::size_t kSectorBytes = 512; // what a power cut does not tear

    /// A protocol node on a file of this disk.
    std::unique_ptr<Node> open(const std::string& file = {});
    /// The image's path: where it says that others lie beside it.
    void call(std::string path) { path_ = std::move(path); }
    /// A disk with these contents and an empty log.
    static std::unique_ptr<SimDisk> with(SimFiles files);
    static std::unique_ptr<SimDisk> with(std::vector<std::byte> image) {
        return with(SimFiles{{"", std::move(image)}});
    }

    const SimFiles& files() const noexcept { return files_; }
    bool has(const std::string& file) const { return files_.contains(file); }
    const std::vector<std::byte>& bytes() const { return files_.at(""); }
    /// Events so far: writes, size changes, flushes.
    std::size_t events() const noexcept { return log_.size(); }
    /// What a power cut after `events` events may leave: of each file everything up to its last
    /// flush before, and of what came after it a random part, sector by sector, in random order.
    SimFiles after_power_cut(std::size_t events, std::mt19937& random) const;
    /// Whether event number `index` is a flush.
    bool is_flush(std::size_t index) const { return log_[index].kind == Event::Kind::Flush; }

    /// The operation after `count` more fails with this errno, once. Of a write that fails for
    /// want of space the first half arrives.
    void fail_after(std::size_t count, int os_errno);
    /// Takes back fail_after() and limit().
    void heal();
    /// From now on no file grows past this size: disk full.
    void limit(std::uint64_t bytes) { limit_ = bytes; }

private:
    class SimNode;
    static constexpr std::uint64_t kNoLimit = std::uint64_t{1} << 40;
    struct Event {
        enum class Kind : std::uint8_t { Write, Resize, Flush } kind;
        std::uint64_t offset = 0; // Resize: the new size
        std::vector<std::byte> bytes;
        std::string file = {};
    };
    /// An error when one is due.
    Result<void> next_operation();
    Result<void> change(Event event);
    void record(Event event);
    static void apply(std::vector<std::byte>& bytes, const Event& event);
    static void apply_torn(std::vector<std::byte>& bytes, const Event& event, std::mt19937& random);

    std::string path_ = "simulated";
    SimFiles files_{{"", {}}};
    SimFiles before_ = files_; // at the beginning of the log
    std::vector<Event> log_;
    std::uint64_t limit_ = kNoLimit;
    std::size_t fail_in_ = 0; // 0: never
    int fail_errno_ = 0;
};

} // namespace doppel::block
