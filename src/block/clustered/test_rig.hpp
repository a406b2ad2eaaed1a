// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What the tests of formats share: any format of the table on a simulated disk, random operations
/// held against a plain array, the power cut at any moment of a random history.
#include <doctest/doctest.h>

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "block/format.hpp"
#include "block/memory/memory_node.hpp"
#include "block/memory/sim_disk.hpp"

namespace doppel::block::test {

/// A form of a format: how large, how created; whether something stands behind it.
struct Form {
    const char* name;
    std::uint64_t size;
    OptionValues options;
    bool backed = false;
};

inline std::vector<std::byte> random_bytes(std::mt19937& random, std::size_t size) {
    std::vector<std::byte> bytes(size);
    for (auto& byte : bytes)
        byte = static_cast<std::byte>(random());
    return bytes;
}

/// What stands behind images that have something there: any name opens it.
class PatternOpener final : public ImageOpener {
public:
    Task<std::unique_ptr<Node>> open_backing(std::string, std::string, std::string,
                                             ImageOptions) override {
        return ready<std::unique_ptr<Node>>(std::make_unique<MemoryNode>(behind));
    }
    Result<std::unique_ptr<Node>> open_part(const std::string& written, const std::string&,
                                            const ImageOptions&) override {
        return base::fail(Errc::NotFound, written);
    }
    std::vector<std::byte> behind;
};

struct Rig {
    explicit Rig(const Format& format_of) : format{format_of} {}
    ~Rig() {
        if (folder.empty())
            return;
        ::unlink((folder + "/parent." + std::string{format.name}).c_str());
        ::rmdir(folder.c_str());
    }
    Rig(const Rig&) = delete;
    Rig& operator=(const Rig&) = delete;

    const Format& format;
    std::unique_ptr<base::EventLoop> loop = base::EventLoop::create().value();
    std::unique_ptr<IoContext> context = IoContext::create(*loop, IoKind::Threads).value();
    PatternOpener opener;
    std::string folder; // of parent_file()

    template <typename T> Result<T> wait(Task<T> task) { return context->wait(std::move(task)); }

    /// A file of this format that a differencing image can take its parent's identity from.
    std::string parent_file(std::uint64_t size) {
        if (folder.empty()) {
            std::string form = "/tmp/doppel-format-XXXXXX";
            folder = ::mkdtemp(form.data());
        }
        auto path = folder + "/parent." + std::string{format.name};
        auto file = FileNode::create(*context, path).value();
        REQUIRE(wait(format.create({context.get(), std::move(file), size, {}, &opener})));
        return path;
    }

    std::vector<std::byte> create(SimDisk& disk, const Form& form) {
        auto options = form.options;
        if (form.backed)
            options["backing_file"] = parent_file(form.size);
        const auto made =
            wait(format.create({context.get(), disk.open(), form.size, options, &opener}));
        if (!made)
            FAIL(std::string{form.name} << ": " << made.error().message());
        std::vector<std::byte> shown(form.size);
        opener.behind.clear();
        if (form.backed) { // whole sectors of a number that no history uses
            opener.behind.resize(form.size * 3 / 4 / 512 * 512, std::byte{0xee});
            std::ranges::copy(opener.behind, shown.begin());
        }
        return shown;
    }
    Result<std::unique_ptr<ImageNode>> open(SimDisk& disk, Access access = Access::ReadWrite) {
        OpenRequest request{context.get(), disk.open(), {}, &opener};
        request.options.access = access;
        return wait(format.open(std::move(request)));
    }
};

/// Random operations on an image and on a plain array.
class Walk {
public:
    Walk(Rig& rig, const Form& form, unsigned seed) : rig_{rig}, form_{form}, random_{seed} {
        model_ = rig_.create(disk_, form_);
        node_ = rig_.open(disk_).value();
        REQUIRE(node_->size() == model_.size());
    }

    void step() {
        switch (random_() % 14) {
        case 0:
        case 1:
        case 2:
        case 3:
        case 4: return write();
        case 5:
        case 6: return zero();
        case 7: return discard();
        case 8: return resize();
        case 9: return reopen();
        case 10: REQUIRE(rig_.wait(node_->flush())); return;
        default: return compare_part();
        }
    }
    void finish() {
        compare(0, model_.size());
        check();
        REQUIRE(rig_.wait(node_->close()));
    }
    const std::vector<std::byte>& image() const { return disk_.bytes(); }
    const std::vector<std::byte>& model() const { return model_; }

private:
    std::pair<std::uint64_t, std::uint64_t> range(std::uint64_t most) {
        const auto begin = random_() % model_.size();
        return {begin, 1 + random_() % std::min<std::uint64_t>(most, model_.size() - begin)};
    }
    auto at(std::uint64_t offset) { return model_.begin() + static_cast<std::ptrdiff_t>(offset); }
    void write() {
        const auto [offset, length] = range(random_() % 3 == 0 ? 200000 : 5000);
        const auto bytes = random_bytes(random_, length);
        REQUIRE(rig_.wait(node_->write(offset, IoBuffer::of(bytes), Durability::Cached)));
        std::ranges::copy(bytes, at(offset));
    }
    void zero() {
        const auto [offset, length] = range(300000);
        const auto unmap = random_() % 2 == 0 ? Unmap::Allow : Unmap::Keep;
        REQUIRE(rig_.wait(node_->write_zeroes(offset, length, unmap, Durability::Cached)));
        std::fill_n(at(offset), length, std::byte{0});
    }
    /// Afterwards each byte is as before or zero.
    void discard() {
        const auto [offset, length] = range(300000);
        REQUIRE(rig_.wait(node_->discard(offset, length)));
        std::vector<std::byte> got(length);
        REQUIRE(rig_.wait(node_->read(offset, IoBuffer{got})));
        for (std::size_t i = 0; i < length; ++i)
            if (got[i] != *at(offset + i))
                REQUIRE(got[i] == std::byte{0});
        std::ranges::copy(got, at(offset));
    }
    void resize() {
        const auto size = (1 + random_() % (form_.size * 2 / 512)) * 512;
        const auto done = rig_.wait(node_->resize(size));
        if (!done && done.error().code == Errc::Unsupported)
            return;
        if (!done)
            MESSAGE(done.error().message());
        REQUIRE(done);
        model_.resize(size);
        REQUIRE(node_->size() == size);
    }
    void reopen() {
        REQUIRE(rig_.wait(node_->close()));
        node_.reset();
        node_ = rig_.open(disk_).value();
        REQUIRE(node_->size() == model_.size());
        check();
    }
    void compare_part() {
        const auto [offset, length] = range(100000);
        compare(offset, length);
    }
    void compare(std::uint64_t offset, std::uint64_t length) {
        std::vector<std::byte> got(length);
        REQUIRE(rig_.wait(node_->read(offset, IoBuffer{got})));
        REQUIRE(std::equal(got.begin(), got.end(), at(offset)));
    }
    void check() {
        REQUIRE(rig_.wait(node_->flush()));
        const auto result = rig_.wait(node_->check(Repair::None)).value();
        if (!result.findings.empty())
            MESSAGE(std::string{form_.name} << ": " << result.findings.front());
        REQUIRE(result.corruptions == 0);
        REQUIRE(result.leaks == 0);
    }

    Rig& rig_;
    const Form& form_;
    std::mt19937 random_;
    std::vector<std::byte> model_;
    SimDisk disk_;
    std::unique_ptr<ImageNode> node_;
};

inline void keep(const std::string& path, const std::vector<std::byte>& bytes) {
    std::ofstream{path, std::ios::binary}.write(reinterpret_cast<const char*>(bytes.data()),
                                                static_cast<std::streamsize>(bytes.size()));
}

/// DOPPEL_KEEP_IMAGES: a folder for the images and what they must show, for other readers.
inline void random_operations(const Format& format, const std::vector<Form>& forms) {
    Rig rig{format};
    const char* folder = std::getenv("DOPPEL_KEEP_IMAGES");
    const char* wanted = std::getenv("DOPPEL_RANDOM_STEPS");
    const int steps = wanted != nullptr ? std::atoi(wanted) : 250;
    for (const auto& form : forms) {
        INFO("form " << std::string{form.name});
        Walk walk{rig, form, 1};
        for (int i = 0; i < steps; ++i)
            walk.step();
        walk.finish();
        if (folder == nullptr)
            continue;
        if (form.backed)
            continue; // others would not find what stands behind it
        const auto base = std::string{folder} + "/" + form.name;
        keep(base + "." + std::string{format.name}, walk.image());
        keep(base + ".raw", walk.model());
    }
}

/// Each write stamps its sectors with its number. A sector may hold what was flushed last, or any
/// stamp that it was given since.
class History {
public:
    static constexpr std::uint64_t kSector = SimDisk::kSectorBytes;

    History(Rig& rig, const Form& form, unsigned seed) : rig_{rig}, random_{seed} {
        SimDisk fresh;
        const auto shown = rig_.create(fresh, form);
        disk_ = SimDisk::with(fresh.bytes());
        node_ = rig_.open(*disk_).value();
        current_.resize(shown.size() / kSector);
        for (std::size_t i = 0; i < current_.size(); ++i)
            std::memcpy(&current_[i], shown.data() + i * kSector, sizeof current_[i]);
        note(true);
    }
    void run(int steps) {
        for (int i = 0; i < steps; ++i)
            step();
        (void)rig_.wait(node_->flush());
        note(true);
        node_.reset(); // not closed: the power fails
    }
    const SimDisk& disk() const { return *disk_; }
    std::uint64_t sectors() const { return current_.size(); }

    /// What a sector may hold after a cut at this event.
    std::vector<std::set<std::uint32_t>> allowed(std::size_t event) const {
        std::vector<std::set<std::uint32_t>> contents(sectors());
        std::size_t flushed = 0;
        for (std::size_t i = 0; i < notes_.size(); ++i)
            if (notes_[i].flushed && notes_[i].event <= event)
                flushed = i;
        for (std::size_t i = flushed; i < notes_.size(); ++i) {
            for (std::uint64_t s = 0; s < sectors(); ++s)
                contents[s].insert(notes_[i].content[s]);
            if (notes_[i].event > event)
                break; // the operation that was under way counts, too
        }
        return contents;
    }

private:
    struct Note {
        std::size_t event = 0;
        bool flushed = false;
        std::vector<std::uint32_t> content;
    };
    void note(bool flushed) { notes_.push_back({disk_->events(), flushed, current_}); }
    void set(std::uint64_t first, std::uint64_t count, std::uint32_t stamp) {
        std::fill_n(current_.begin() + static_cast<std::ptrdiff_t>(first), count, stamp);
        note(false);
    }
    void step() {
        const auto first = random_() % sectors();
        const auto count = 1 + random_() % std::min<std::uint64_t>(40, sectors() - first);
        const auto length = count * kSector;
        switch (random_() % 8) {
        case 0: REQUIRE(rig_.wait(node_->flush())); return note(true);
        case 1:
            REQUIRE(rig_.wait(node_->write_zeroes(first * kSector, length,
                                                  random_() % 2 == 0 ? Unmap::Allow : Unmap::Keep,
                                                  Durability::Cached)));
            return set(first, count, 0);
        default: break;
        }
        const auto stamp = ++stamps_;
        std::vector<std::byte> bytes(length);
        for (std::size_t i = 0; i < length; i += sizeof stamp)
            std::memcpy(bytes.data() + i, &stamp, sizeof stamp);
        REQUIRE(rig_.wait(node_->write(first * kSector, IoBuffer::of(bytes), Durability::Cached)));
        set(first, count, stamp);
    }

    Rig& rig_;
    std::mt19937 random_;
    std::unique_ptr<SimDisk> disk_;
    std::unique_ptr<ImageNode> node_;
    std::vector<std::uint32_t> current_;
    std::vector<Note> notes_;
    std::uint32_t stamps_ = 0;
};

inline void require_sound(Rig& rig, ImageNode& node, std::size_t event) {
    const auto result = rig.wait(node.check(Repair::None)).value();
    if (result.corruptions != 0)
        MESSAGE("event " << event << ": " << result.findings.front());
    REQUIRE(result.corruptions == 0);
}

inline void examine(Rig& rig, const History& history, std::size_t event, std::mt19937& random) {
    const auto disk = SimDisk::with(history.disk().after_power_cut(event, random));
    auto opened = rig.open(*disk);
    if (!opened)
        MESSAGE("event " << event << ": " << opened.error().message());
    REQUIRE(opened.has_value());
    auto& node = **opened;
    require_sound(rig, node, event);
    std::vector<std::byte> bytes(node.size());
    REQUIRE(rig.wait(node.read(0, IoBuffer{bytes})));
    const auto allowed = history.allowed(event);
    for (std::uint64_t sector = 0; sector < history.sectors(); ++sector) {
        const auto* at = bytes.data() + sector * History::kSector;
        std::uint32_t stamp = 0;
        std::memcpy(&stamp, at, sizeof stamp);
        const bool whole = std::memcmp(at, at + 4, History::kSector - 4) == 0;
        if (!whole || !allowed[sector].contains(stamp))
            MESSAGE("event " << event << ", sector " << sector << ": stamp " << stamp);
        REQUIRE(whole);
        REQUIRE(allowed[sector].contains(stamp));
    }
    // Life goes on: what is written next disturbs nothing else.
    const auto offset = random() % history.sectors() * History::kSector;
    std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(offset), History::kSector,
                std::byte{0x77});
    const IoBuffer more{bytes.data() + offset, History::kSector};
    REQUIRE(rig.wait(node.write(offset, more, Durability::Durable)));
    require_sound(rig, node, event);
    std::vector<std::byte> again(bytes.size());
    REQUIRE(rig.wait(node.read(0, IoBuffer{again})));
    REQUIRE(again == bytes);
    REQUIRE(rig.wait(node.close()));
}

/// DOPPEL_POWER_CUTS: states per form.
inline void power_cuts(const Format& format, const std::vector<Form>& forms) {
    const char* wanted = std::getenv("DOPPEL_POWER_CUTS");
    const int states = wanted != nullptr ? std::atoi(wanted) : 60;
    Rig rig{format};
    std::mt19937 random{11};
    for (const auto& form : forms) {
        INFO("form " << std::string{form.name});
        for (int done = 0; done < states;) {
            History history{rig, form, static_cast<unsigned>(random())};
            history.run(40);
            for (int i = 0; i < 30 && done < states; ++i, ++done)
                examine(rig, history, random() % (history.disk().events() + 1), random);
        }
    }
}

/// The disk fails or is full in the middle of a large write: an error, and what was flushed stays.
inline void failing_disk(const Format& format, const Form& form) {
    Rig rig{format};
    const std::vector<std::byte> bytes(8192, std::byte{7});
    const std::vector<std::byte> more(form.size - 20480, std::byte{9});
    for (std::size_t after = 1; after < 40; ++after) {
        SimDisk disk;
        rig.create(disk, form);
        {
            auto node = rig.open(disk).value();
            REQUIRE(rig.wait(node->write(0, IoBuffer::of(bytes), Durability::Durable)));
            disk.fail_after(after, after % 2 == 0 ? EIO : ENOSPC);
            (void)rig.wait(node->write(20480, IoBuffer::of(more), Durability::Durable));
            (void)rig.wait(node->close());
        }
        disk.heal();
        auto node = rig.open(disk).value();
        require_sound(rig, *node, after);
        std::vector<std::byte> got(bytes.size());
        REQUIRE(rig.wait(node->read(0, IoBuffer{got})));
        REQUIRE(got == bytes);
        REQUIRE(rig.wait(node->close()));
    }
}

} // namespace doppel::block::test
