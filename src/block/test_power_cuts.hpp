// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The power fails, or the disk, at any moment of a random history of everything that the format
/// can: the image opens, nothing in it is corrupt, every sector that was flushed is there, every
/// other one is old or new, never foreign. What a format cannot do is left out by itself.
///
/// DOPPEL_POWER_CUTS: states per form. DOPPEL_KEEP_STATES: a folder for some of them, each with
/// what it must show (tests/block/power_cut_test.py has qemu-img look at them); DOPPEL_KEEP_EVERY:
/// which. DOPPEL_SEED: other histories. DOPPEL_FORM: only this one.
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <set>

#include "block/codec/codec.hpp"
#include "block/test_rig.hpp"

namespace doppel::block::test {

constexpr std::uint64_t kSector = SimDisk::kSectorBytes;

/// What a disk shows: of each sector the number that fills it, 0 behind the end.
struct Picture {
    std::uint64_t sectors = 0;
    std::vector<std::uint32_t> stamps;
};

struct Shown {
    Picture disk;
    std::map<std::string, std::shared_ptr<const Picture>> snapshots;
    std::map<std::string, std::shared_ptr<const Picture>> bitmaps; // the disk when they were added
};

/// The stamps of some sectors. No sector is a mixture.
inline std::vector<std::uint32_t> stamps_of(std::span<const std::byte> bytes) {
    std::vector<std::uint32_t> stamps(bytes.size() / kSector);
    for (std::size_t i = 0; i < stamps.size(); ++i) {
        const auto* at = bytes.data() + i * kSector;
        std::memcpy(&stamps[i], at, sizeof stamps[i]);
        REQUIRE(std::memcmp(at, at + sizeof stamps[i], kSector - sizeof stamps[i]) == 0);
    }
    return stamps;
}

inline std::vector<std::byte> stamped(std::uint64_t sectors, std::uint32_t stamp) {
    std::vector<std::byte> bytes(sectors * kSector);
    for (std::size_t i = 0; i < bytes.size(); i += sizeof stamp)
        std::memcpy(bytes.data() + i, &stamp, sizeof stamp);
    return bytes;
}

class History {
public:
    struct Note { // after an operation
        std::size_t event = 0;
        bool flushed = false;
        Shown shown;
    };

    History(Rig& rig, const Form& form, unsigned seed) : rig_{rig}, form_{form}, random_{seed} {
        SimDisk fresh;
        const auto bytes = rig_.create(fresh, form);
        disk_ = SimDisk::with(fresh.files());
        node_ = rig_.open(*disk_).value();
        most_ = bytes.size() / kSector * 3 / 2;
        now_.disk = {bytes.size() / kSector, stamps_of(bytes)};
        now_.disk.stamps.resize(most_);
        note(now_, true);
    }
    /// One of the operations on the disk will fail, or it will be full.
    void doom() {
        doomed_ = true;
        if (random_() % 3 == 0)
            disk_->limit(disk_->bytes().size() + random_() % (form_.size / 2));
        else
            disk_->fail_after(random_() % 300, random_() % 2 == 0 ? EIO : ENOSPC);
    }
    void run(int steps) {
        for (int i = 0; i < steps && node_; ++i)
            step();
        if (node_)
            settle(rig_.wait(node_->flush()), now_, true);
        node_.reset(); // not closed: the power fails
        disk_->heal();
    }
    const SimDisk& disk() const { return *disk_; }
    const Form& form() const { return form_; }

    /// What the image may be after a cut at this event: as it was flushed last, or after any
    /// operation since; the one that was under way counts, too.
    std::vector<const Shown*> possible(std::size_t event) const {
        std::size_t flushed = 0;
        for (std::size_t i = 0; i < notes_.size(); ++i)
            if (notes_[i].flushed && notes_[i].event <= event)
                flushed = i;
        std::vector<const Shown*> shown;
        for (std::size_t i = flushed; i < notes_.size(); ++i) {
            shown.push_back(&notes_[i].shown);
            if (notes_[i].event > event &&
                (i + 1 == notes_.size() || notes_[i + 1].event != notes_[i].event))
                break;
        }
        return shown;
    }

private:
    void note(const Shown& shown, bool flushed) {
        notes_.push_back({disk_->events(), flushed && !failed_, shown});
    }
    /// Notes what an operation makes of the image; of one that failed, that it may have.
    void settle(const Result<void>& done, Shown after, bool flushed = false) {
        if (!done && done.error().code == Errc::Unsupported)
            return;
        if (!done && !doomed_)
            MESSAGE(done.error().message());
        REQUIRE((done || doomed_));
        failed_ = failed_ || !done;
        note(after, flushed);
        if (done)
            now_ = std::move(after);
        else
            note(now_, false);
    }

    void step() {
        const auto kind = random_() % 25;
        if (failed_ && kind >= 6 && kind < 16)
            return; // what the image is now is not known well enough
        switch (kind) {
        case 0:
        case 1:
        case 2: return settle(rig_.wait(node_->flush()), now_, true);
        case 3:
        case 4:
        case 5: return zero();
        case 6: return discard();
        case 7:
        case 8: return snapshot();
        case 9:
        case 10: return resize();
        case 11:
        case 12: return compress();
        case 13: return bitmap();
        case 14: return reopen();
        case 15: return amend();
        default: return write();
        }
    }

    struct Range {
        std::uint64_t first, count;
        std::uint64_t offset, bytes;
    };
    Range range() {
        const auto sectors = std::min(now_.disk.sectors, (node_->size() - form_.window) / kSector);
        const auto first = random_() % sectors;
        const auto count = 1 + random_() % std::min<std::uint64_t>(40, sectors - first);
        return {first, count, form_.window + first * kSector, count * kSector};
    }
    Shown filled(const Range& range, std::uint32_t stamp) const {
        auto after = now_;
        std::fill_n(after.disk.stamps.begin() + static_cast<std::ptrdiff_t>(range.first),
                    range.count, stamp);
        return after;
    }
    void write() {
        const auto at = range();
        const auto bytes = stamped(at.count, ++stamps_);
        settle(rig_.wait(node_->write(at.offset, IoBuffer::of(bytes), Durability::Cached)),
               filled(at, stamps_));
    }
    void zero() {
        const auto at = range();
        const auto unmap = random_() % 2 == 0 ? Unmap::Allow : Unmap::Keep;
        settle(rig_.wait(node_->write_zeroes(at.offset, at.bytes, unmap, Durability::Cached)),
               filled(at, 0));
    }
    /// Afterwards each sector is as before or zero; the image says which.
    void discard() {
        const auto at = range();
        auto after = filled(at, 0);
        auto done = rig_.wait(node_->discard(at.offset, at.bytes));
        std::vector<std::byte> bytes(at.bytes);
        if (done)
            done = rig_.wait(node_->read(at.offset, IoBuffer{bytes}));
        if (done) {
            const auto stamps = stamps_of(bytes);
            for (std::size_t i = 0; i < at.count; ++i)
                after.disk.stamps[at.first + i] = stamps[i];
            for (std::size_t i = at.first; i < at.first + at.count; ++i)
                if (after.disk.stamps[i] != 0)
                    REQUIRE(after.disk.stamps[i] == now_.disk.stamps[i]);
        }
        settle(done, std::move(after));
    }
    void snapshot() {
        auto after = now_;
        const auto some = random_();
        if (now_.snapshots.size() < 3 && some % 2 == 0) {
            const auto name = "s" + std::to_string(++names_);
            after.snapshots[name] = std::make_shared<Picture>(now_.disk);
            return settle(rig_.wait(node_->create_snapshot(name, 1'700'000'000'000'000'000)),
                          std::move(after));
        }
        if (now_.snapshots.empty())
            return;
        const auto chosen = std::next(
            now_.snapshots.begin(), static_cast<std::ptrdiff_t>(random_() % now_.snapshots.size()));
        if (some % 3 == 0) {
            after.snapshots.erase(chosen->first);
            return settle(rig_.wait(node_->delete_snapshot(chosen->first)), std::move(after));
        }
        after.disk = *chosen->second;
        settle(rig_.wait(node_->apply_snapshot(chosen->first)), std::move(after));
    }
    void resize() {
        const auto sectors = 1 + random_() % most_;
        if (!form_.resized)
            return;
        auto after = now_;
        after.disk.sectors = sectors;
        std::fill(after.disk.stamps.begin() + static_cast<std::ptrdiff_t>(sectors),
                  after.disk.stamps.end(), 0);
        const auto end = node_->size();
        settle(rig_.wait(node_->resize(form_.window + sectors * kSector)), std::move(after));
        const auto how = random_() % 2 == 0 ? Preallocation::Metadata : Preallocation::Full;
        if (!failed_ && end < node_->size() && random_() % 2 == 0 && node_->can_preallocate(how))
            settle(rig_.wait(node_->preallocate(end, how)), now_);
    }
    /// What the disk shows stays. What does not go together is refused.
    void amend() {
        if (form_.amended.empty())
            return;
        const auto done = rig_.wait(node_->amend(form_.amended[random_() % form_.amended.size()]));
        if (done || done.error().code != Errc::InvalidArgument)
            settle(done, now_);
    }
    void compress() {
        const auto kind = node_->compression();
        const auto cluster = node_->limits().cluster_bytes;
        const auto at =
            random_() % now_.disk.sectors * kSector / std::max<std::uint64_t>(cluster, 1);
        if (kind == CompressionKind::None || (at + 1) * cluster > now_.disk.sectors * kSector)
            return;
        const auto bytes = stamped(cluster / kSector, ++stamps_);
        const auto packed = kind == CompressionKind::Zstd
                                ? codec::zstd(bytes, cluster, codec::Effort::Fast)
                                : codec::deflate(bytes, cluster, codec::Effort::Fast);
        const auto first = at * cluster / kSector;
        settle(rig_.wait(node_->write_compressed(at * cluster, packed)),
               filled({first, cluster / kSector, 0, 0}, stamps_));
    }
    /// Reaches the image when it is closed.
    void bitmap() {
        auto* store = node_->bitmaps();
        if (store == nullptr)
            return;
        if (bitmaps_.size() == 2) {
            REQUIRE(store->remove(bitmaps_.begin()->first));
            bitmaps_.erase(bitmaps_.begin());
            return;
        }
        const auto name = "b" + std::to_string(++names_);
        if (store->add(name, 4096))
            bitmaps_[name] = std::make_shared<Picture>(now_.disk);
    }
    void reopen() {
        auto after = now_;
        after.bitmaps = bitmaps_;
        settle(rig_.wait(node_->close()), std::move(after), true);
        node_.reset();
        if (failed_)
            return;
        auto opened = rig_.open(*disk_);
        REQUIRE((opened || doomed_));
        failed_ = !opened;
        if (opened)
            node_ = std::move(*opened);
    }

    Rig& rig_;
    const Form& form_;
    std::mt19937 random_;
    std::unique_ptr<SimDisk> disk_;
    std::unique_ptr<ImageNode> node_;
    std::uint64_t most_ = 0; // sectors
    Shown now_;
    std::map<std::string, std::shared_ptr<const Picture>> bitmaps_; // in memory
    std::vector<Note> notes_;
    std::uint32_t stamps_ = 0;
    unsigned names_ = 0;
    bool doomed_ = false; // operations may fail
    bool failed_ = false; // one has
};

inline void require_sound(Rig& rig, ImageNode& node) {
    const auto result = rig.wait(node.check(Repair::None));
    if (!result && result.error().code == Errc::Unsupported)
        return;
    if (result && result->corruptions != 0)
        for (const auto& finding : result->findings)
            MESSAGE(finding);
    REQUIRE((result && result->corruptions == 0));
}

/// One state of a disk after a cut, held against what it may be.
class Examination {
public:
    Examination(Rig& rig, const Form& form, SimFiles files, std::vector<const Shown*> possible)
        : rig_{rig}, form_{form}, disk_{SimDisk::with(std::move(files))},
          possible_{std::move(possible)} {}

    /// What the disk shows from the form's window on.
    std::vector<std::byte> run(std::mt19937& random) {
        check_snapshots();
        auto opened = rig_.open(*disk_);
        if (!opened)
            MESSAGE(opened.error().message());
        REQUIRE(opened.has_value());
        auto& node = **opened;
        require_sound(rig_, node);
        auto bytes = read(node);
        check_disk(bytes);
        check_bitmaps(node, stamps_of(bytes));
        go_on(node, bytes, random);
        REQUIRE(rig_.wait(node.close()));
        return bytes;
    }

private:
    std::vector<std::byte> read(ImageNode& node) {
        std::vector<std::byte> bytes(node.size() - form_.window);
        const auto done = rig_.wait(node.read(form_.window, IoBuffer{bytes}));
        if (!done)
            MESSAGE(done.error().message());
        REQUIRE(done);
        return bytes;
    }
    void check_disk(const std::vector<std::byte>& bytes) {
        const auto sectors = bytes.size() / kSector;
        const auto size_fits = [&](const Shown* one) { return one->disk.sectors == sectors; };
        REQUIRE(std::ranges::any_of(possible_, size_fits));
        const auto stamps = stamps_of(bytes);
        for (std::size_t i = 0; i < sectors; ++i) {
            const auto stamp = stamps[i];
            const auto fits = [&](const Shown* one) { return one->disk.stamps[i] == stamp; };
            if (std::ranges::any_of(possible_, fits))
                continue;
            MESSAGE("sector " << i << " shows " << stamp << ", flushed was "
                              << possible_.front()->disk.stamps[i]);
            FAIL("foreign data, or data lost");
        }
    }
    /// A snapshot is there as a whole or not at all.
    void check_snapshots() {
        if (possible_.front()->snapshots.empty() && possible_.back()->snapshots.empty())
            return;
        std::set<std::string> names;
        const auto node = open_to_read();
        const auto listed = rig_.wait(node->list_snapshots()).value();
        for (const auto& snapshot : listed)
            names.insert(snapshot.name);
        for (const auto* one : possible_)
            for (const auto& [name, picture] : one->snapshots) {
                const auto has = [&](const Shown* other) {
                    return other->snapshots.contains(name);
                };
                if (names.contains(name))
                    check_snapshot(name, *picture);
                else
                    REQUIRE(!std::ranges::all_of(possible_, has));
            }
        for (const auto& name : names)
            REQUIRE(std::ranges::any_of(
                possible_, [&](const Shown* one) { return one->snapshots.contains(name); }));
    }
    void check_snapshot(const std::string& name, const Picture& picture) {
        if (!checked_.insert(name).second)
            return;
        const auto node = open_to_read();
        REQUIRE(rig_.wait(node->view_snapshot(name)));
        auto stamps = stamps_of(read(*node));
        REQUIRE(stamps.size() == picture.sectors);
        stamps.resize(picture.stamps.size());
        REQUIRE(stamps == picture.stamps);
    }
    std::unique_ptr<ImageNode> open_to_read() {
        auto node = rig_.open(*disk_, Access::ReadOnly);
        if (!node)
            MESSAGE(node.error().message());
        REQUIRE(node.has_value());
        return std::move(*node);
    }
    /// One that claims to be consistent marks everything that was written since it was added.
    void check_bitmaps(ImageNode& node, const std::vector<std::uint32_t>& stamps) {
        if (node.bitmaps() == nullptr)
            return;
        for (const auto& bitmap : node.bitmaps()->list()) {
            const auto knows = [&](const Shown* one) { return one->bitmaps.contains(bitmap.name); };
            const auto known = std::ranges::find_if(possible_, knows);
            REQUIRE(known != possible_.end());
            if (bitmap.inconsistent)
                continue;
            const auto& before = *(*known)->bitmaps.at(bitmap.name);
            const auto marked = node.bitmaps()->marked(bitmap.name).value();
            for (std::uint64_t i = 0; i < stamps.size(); ++i) {
                const auto covers = [&](const BitmapStore::MarkedRange& range) {
                    return range.first <= i * kSector && i * kSector < range.second;
                };
                if (stamps[i] != 0 && stamps[i] != before.stamps[i])
                    REQUIRE(std::ranges::any_of(marked, covers));
            }
        }
    }
    /// What is written next disturbs nothing else.
    void go_on(ImageNode& node, const std::vector<std::byte>& before, std::mt19937& random) {
        auto bytes = before;
        const auto offset = random() % (bytes.size() / kSector) * kSector;
        std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(offset), kSector, std::byte{0x77});
        const IoBuffer more{bytes.data() + offset, kSector};
        REQUIRE(rig_.wait(node.write(form_.window + offset, more, Durability::Durable)));
        require_sound(rig_, node);
        REQUIRE(read(node) == bytes);
    }

    Rig& rig_;
    const Form& form_;
    std::unique_ptr<SimDisk> disk_;
    std::vector<const Shown*> possible_;
    std::set<std::string> checked_;
};

/// A state for other readers, in a folder of its own.
class Keeper {
public:
    explicit Keeper(const Rig& rig) : rig_{rig} {}
    void keep_some(const Form& form, const SimFiles& files, const std::vector<std::byte>& shown) {
        const char* folder = std::getenv("DOPPEL_KEEP_STATES");
        if (folder == nullptr || form.backed || ++seen_ % wanted("DOPPEL_KEEP_EVERY", 20) != 0)
            return;
        const auto own = std::string{folder} + "/" + form.name + "-" + std::to_string(seen_);
        ::mkdir(own.c_str(), 0700);
        for (const auto& [name, bytes] : files)
            keep(own + "/" + (name.empty() ? "disk." + std::string{rig_.format.name} : name),
                 bytes);
        keep(own + "/shown.raw", shown, form.window);
    }

private:
    const Rig& rig_;
    int seen_ = 0;
};

constexpr int kStatesOfHistory = 30;

/// States of one history, at most so many; how many.
inline int examine_history(Rig& rig, Keeper& keeper, const History& history, int most,
                           std::mt19937& random) {
    const auto end = history.disk().events();
    int done = 0;
    for (; done < std::min(kStatesOfHistory, most); ++done) {
        const auto event = random() % (end + 1);
        CAPTURE(event);
        const auto files =
            done == 0 ? history.disk().files() : history.disk().after_power_cut(event, random);
        auto possible = history.possible(done == 0 ? end : event);
        const auto shown = Examination{rig, history.form(), files, std::move(possible)}.run(random);
        keeper.keep_some(history.form(), files, shown);
    }
    return done;
}

inline int cut_one(Rig& rig, Keeper& keeper, const Form& form, unsigned seed, bool doomed, int most,
                   std::mt19937& random) {
    CAPTURE(seed);
    CAPTURE(doomed);
    History history{rig, form, seed};
    if (doomed)
        history.doom();
    history.run(40);
    return examine_history(rig, keeper, history, most, random);
}

inline void power_cuts(const Format& format, const std::vector<Form>& forms) {
    const int states = wanted("DOPPEL_POWER_CUTS", 60);
    Rig rig{format};
    Keeper keeper{rig};
    std::mt19937 random{static_cast<unsigned>(wanted("DOPPEL_SEED", 11))};
    const char* only = std::getenv("DOPPEL_FORM");
    for (const auto& form : forms) {
        if (only != nullptr && std::string{only} != form.name)
            continue;
        CAPTURE(std::string{form.name});
        for (int done = 0, number = 0; done < states; ++number) {
            const auto seed = static_cast<unsigned>(random());
            done += cut_one(rig, keeper, form, seed, number % 3 == 2, states - done, random);
        }
    }
}

/// A history that once ended badly.
inline void power_cuts_again(const Format& format, const Form& form, unsigned seed, bool doomed) {
    Rig rig{format};
    Keeper keeper{rig};
    std::mt19937 random{seed};
    cut_one(rig, keeper, form, seed, doomed, kStatesOfHistory, random);
}

/// The disk fails or is full in the middle of a large write: an error, and what was flushed stays.
inline void failing_disk(const Format& format, const Form& form) {
    Rig rig{format};
    const std::vector<std::byte> bytes(8192, std::byte{7});
    const std::vector<std::byte> more(form.size - 20480, std::byte{9});
    for (std::size_t after = 1; after < 40; ++after) {
        CAPTURE(after);
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
        require_sound(rig, *node);
        std::vector<std::byte> got(bytes.size());
        REQUIRE(rig.wait(node->read(0, IoBuffer{got})));
        REQUIRE(got == bytes);
        REQUIRE(rig.wait(node->close()));
    }
}

/// The disk fails once while an image changes its size to the first of these, and works again when
/// it shall have the second: the node refuses, or what it has more than before is zeroes.
inline void failing_resize(const Format& format, const Form& form, std::uint64_t first,
                           std::uint64_t second) {
    Rig rig{format};
    const std::vector<std::byte> data(form.size, std::byte{7});
    bool failed = true;
    for (std::size_t after = 0; failed; ++after) {
        CAPTURE(after);
        SimDisk disk;
        rig.create(disk, form);
        {
            auto node = rig.open(disk).value();
            REQUIRE(rig.wait(node->write(0, IoBuffer::of(data), Durability::Durable)));
            disk.fail_after(after, EIO);
            failed = !rig.wait(node->resize(first));
            disk.heal();
            auto shown = data;
            shown.resize(std::min<std::uint64_t>(node->size(), data.size()));
            shown.resize(second);
            std::vector<std::byte> got(second);
            if (rig.wait(node->resize(second))) {
                REQUIRE(rig.wait(node->read(0, IoBuffer{got})));
                REQUIRE(got == shown);
            } else {
                REQUIRE(!rig.wait(
                    node->write(0, IoBuffer::of(data).slice(0, 512), Durability::Cached)));
            }
        }
        auto node = rig.open(disk).value();
        require_sound(rig, *node);
        REQUIRE(rig.wait(node->close()));
    }
}

/// When it grows, and when it shrinks.
inline void failing_resize(const Format& format, const Form& form) {
    failing_resize(format, form, form.size * 3 / 2, form.size * 2);
    failing_resize(format, form, form.size / 2, form.size);
}

} // namespace doppel::block::test
