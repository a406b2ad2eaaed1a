// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "base/test_folder.hpp"
#include "block/aligned_memory.hpp"
#include "block/file/file_node.hpp"
#include "block/raw/raw_node.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

/// A folder of its own below the build tree's disk, so that O_DIRECT works.
struct Rig {
    std::string path(const std::string& name) const { return folder / name; }
    std::string file(const std::string& name, std::size_t size) const {
        std::ofstream{path(name)} << std::string(size, 'x');
        return path(name);
    }

    base::TestFolder folder{"file-node", "."};
    std::unique_ptr<base::EventLoop> loop = base::EventLoop::create().value();
    std::unique_ptr<IoContext> context = IoContext::create(*loop).value();
};

std::string complaint(IoContext& context, const std::string& path, FileOptions options = {}) {
    const auto node = FileNode::open(context, path, options);
    return node ? "opened" : node.error().message();
}

void random_operations(IoContext& context, FileNode& node, std::vector<std::byte>& model) {
    std::mt19937 random{7};
    for (int step = 0; step < 300; ++step) {
        const std::uint64_t offset = random() % 20000;
        std::vector<std::byte> bytes(1 + random() % 6000, static_cast<std::byte>(random()));
        model.resize(std::max(model.size(), offset + bytes.size()));
        const auto at = model.begin() + static_cast<std::ptrdiff_t>(offset);
        switch (random() % 4) {
        case 0: {
            std::ranges::copy(bytes, at);
            const auto from = IoBuffer::of(bytes);
            REQUIRE(context.wait(node.write(offset, from, Durability::Cached)));
            break;
        }
        case 1:
            std::fill_n(at, bytes.size(), std::byte{0});
            REQUIRE(context.wait(
                node.write_zeroes(offset, bytes.size(), Unmap::Allow, Durability::Durable)));
            break;
        case 2:
            std::fill_n(at, bytes.size(), std::byte{0});
            REQUIRE(context.wait(
                node.write_zeroes(offset, bytes.size(), Unmap::Keep, Durability::Cached)));
            break;
        default: {
            std::vector<std::byte> got(bytes.size());
            REQUIRE(context.wait(node.read(offset, IoBuffer{got})));
            REQUIRE(std::equal(got.begin(), got.end(), at));
        }
        }
    }
    REQUIRE(context.wait(node.flush()));
}

} // namespace

TEST_CASE("reads and writes at any offset agree with a model, in every cache mode") {
    const Rig rig;
    for (const char* mode : {"writeback", "writethrough", "none", "directsync", "unsafe"}) {
        INFO("cache mode " << mode);
        auto node =
            FileNode::create(*rig.context, rig.path("image"), parse_cache_mode(mode).value());
        if (!node && node.error().code == Errc::Unsupported) {
            MESSAGE("no O_DIRECT here, mode " << mode << " left out");
            continue;
        }
        REQUIRE(node.has_value());
        std::vector<std::byte> model;
        random_operations(*rig.context, **node, model);
        CHECK((*node)->size() >= model.size());
    }
}

TEST_CASE("what lies past the end of a file reads as zeroes") {
    const Rig rig;
    const auto node = FileNode::open(*rig.context, rig.file("short", 10), {}).value();
    std::vector<std::byte> got(20, std::byte{1});
    REQUIRE(rig.context->wait(node->read(5, IoBuffer{got})));
    CHECK(got[4] == std::byte{'x'});
    CHECK(all_zero(std::span{got}.subspan(5)));
}

TEST_CASE("status tells holes from data") {
    const Rig rig;
    const auto node = FileNode::create(*rig.context, rig.path("sparse")).value();
    const std::vector<std::byte> bytes(65536, std::byte{1});
    const auto from = IoBuffer::of(bytes);
    REQUIRE(rig.context->wait(node->write(1u << 20, from, Durability::Cached)));
    REQUIRE(rig.context->wait(node->resize(3u << 20)));
    const auto first = rig.context->wait(node->status(0, 3u << 20)).value();
    CHECK(first.content == Content::Zero);
    CHECK(first.length == 1u << 20);
    const auto second = rig.context->wait(node->status(1u << 20, 3u << 20)).value();
    CHECK(second.content == Content::Data);
    CHECK(second.length == 65536);
}

TEST_CASE("every way in which a file cannot be opened has its sentence") {
    const Rig rig;
    CHECK(complaint(*rig.context, rig.path("none")).find("No such file") != std::string::npos);
    CHECK(complaint(*rig.context, rig.folder.path()).find("is a directory") != std::string::npos);
    CHECK(complaint(*rig.context, "/dev/null").find("neither a file") != std::string::npos);
    const auto fifo = rig.path("fifo");
    REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
    CHECK(complaint(*rig.context, fifo).find("neither a file") != std::string::npos);
    const FileOptions forced{Access::ReadWrite, CacheMode::WriteBack, Sharing::Forced};
    CHECK(complaint(*rig.context, rig.file("a", 1), forced).find("without a lock") !=
          std::string::npos);
}

TEST_CASE("a second writer is refused and told who holds the image; readers share") {
    const Rig rig;
    const auto path = rig.file("image", 512);
    const FileOptions writing{Access::ReadWrite, CacheMode::WriteBack, Sharing::Locked};
    const FileOptions unlocked{Access::ReadOnly, CacheMode::WriteBack, Sharing::Forced};
    {
        const auto reader = FileNode::open(*rig.context, path, {}).value();
        CHECK(complaint(*rig.context, path) == "opened");
        CHECK(complaint(*rig.context, path, writing).find("is in use by process") !=
              std::string::npos);
    }
    const auto writer = FileNode::open(*rig.context, path, writing).value();
    const auto holder = "process " + std::to_string(::getpid());
    CHECK(complaint(*rig.context, path, writing).find(holder) != std::string::npos);
    CHECK(complaint(*rig.context, path).find(holder) != std::string::npos);
    CHECK(complaint(*rig.context, path, unlocked) == "opened");
}

TEST_CASE("an image whose format was guessed raw cannot be given another format's header") {
    const Rig rig;
    auto file = FileNode::create(*rig.context, rig.path("raw")).value();
    REQUIRE(rig.context->wait(file->resize(4096)));
    raw::RawNode node{std::move(file), [](std::span<const std::byte> sector) {
                          return sector[0] == std::byte{'Q'} && sector[1] == std::byte{'F'};
                      }};
    std::vector<std::byte> bytes(1, std::byte{'Q'});
    const auto q = IoBuffer::of(bytes);
    CHECK(rig.context->wait(node.write(0, q, Durability::Cached)).has_value());
    std::vector<std::byte> more(1, std::byte{'F'});
    const auto f = IoBuffer::of(more);
    CHECK(!rig.context->wait(node.write(1, f, Durability::Cached)).has_value());
    CHECK(rig.context->wait(node.write(512, f, Durability::Cached)).has_value());
}

TEST_CASE("zeroes past the end never shorten a file that others made longer") {
    const Rig rig;
    const auto path = rig.file("disk", 512);
    FileOptions options;
    options.access = Access::ReadWrite;
    auto node = FileNode::open(*rig.context, path, options).value();
    // A bulk writer with the descriptor: the node does not know of it.
    REQUIRE(::pwrite(*node->descriptor(), "tail", 4, 100000) == 4);
    REQUIRE(rig.context->wait(node->write_zeroes(4096, 8192, Unmap::Allow, Durability::Cached)));
    CHECK(std::filesystem::file_size(path) == 100004);
    std::vector<std::byte> got(4);
    REQUIRE(rig.context->wait(node->read(100000, IoBuffer{got})));
    CHECK(got[0] == std::byte{'t'});
}

namespace {

/// From now on this file cannot be flushed: its descriptor is a pipe's.
void take_away(const std::string& path) {
    const auto real = std::filesystem::canonical(path);
    int pipe[2];
    REQUIRE(::pipe(pipe) == 0);
    for (const auto& entry : std::filesystem::directory_iterator{"/proc/self/fd"}) {
        std::error_code gone; // the iterator's own
        if (std::filesystem::read_symlink(entry.path(), gone) == real)
            REQUIRE(::dup2(pipe[1], std::stoi(entry.path().filename())) >= 0);
    }
    ::close(pipe[0]);
    ::close(pipe[1]);
}

} // namespace

TEST_CASE("closing flushes a file that was changed, and no other") {
    Rig rig;
    const std::byte byte{1};
    for (const bool flushed : {true, false}) {
        CAPTURE(flushed);
        const auto path = rig.file("disk", 4096);
        auto node = FileNode::open(*rig.context, path, {Access::ReadWrite}).value();
        REQUIRE(rig.context->wait(node->write(0, IoBuffer::of({&byte, 1}), Durability::Cached)));
        if (flushed)
            REQUIRE(rig.context->wait(node->flush()));
        take_away(path);
        CHECK(rig.context->wait(node->close()).has_value() == flushed);
    }
}
