// SPDX-License-Identifier: Apache-2.0
#include "block/memory/sim_disk.hpp"

#include <algorithm>
#include <cerrno>

#include <fmt/core.h>

namespace doppel::block {

class SimDisk::SimNode final : public Node {
public:
    SimNode(SimDisk& disk, std::string file) : disk_{disk}, file_{std::move(file)} {}
    std::string driver() const override { return "memory"; }
    std::string name() const override { return file_.empty() ? disk_.path_ : file_; }
    std::uint64_t size() const override { return bytes().size(); }
    bool read_only() const override { return false; }

    Task<void> read(std::uint64_t offset, IoBuffer into) override {
        if (auto fine = disk_.next_operation(); !fine)
            co_return fine;
        const auto known = offset < size() ? std::min(into.size(), size() - offset) : 0;
        if (known > 0)
            into.slice(0, known).copy_from({bytes().data() + offset, known});
        into.slice(known, into.size() - known).fill(std::byte{0});
        co_return {};
    }
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override {
        std::vector<std::byte> copy(from.size());
        from.copy_to(copy);
        DOPPEL_CO_TRY_VOID(disk_.change({Event::Kind::Write, offset, std::move(copy), file_}));
        if (durability == Durability::Durable)
            DOPPEL_AWAIT_VOID(flush());
        co_return {};
    }
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap,
                            Durability durability) override {
        const std::vector<std::byte> zeroes(length);
        return write(offset, IoBuffer::of(zeroes), durability);
    }
    Task<void> discard(std::uint64_t offset, std::uint64_t length) override {
        const auto end = std::min(size(), offset + length);
        if (offset >= end)
            return ready<void>({});
        return write_zeroes(offset, end - offset, Unmap::Allow, Durability::Cached);
    }
    Task<void> flush() override {
        return ready<void>(disk_.change({Event::Kind::Flush, 0, {}, file_}));
    }
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override {
        Extent extent;
        extent.length = length;
        extent.host = offset;
        extent.place = this;
        return ready<Extent>(extent);
    }
    Task<void> close() override { return flush(); }
    Task<void> resize(std::uint64_t size_bytes) override {
        return ready<void>(disk_.change({Event::Kind::Resize, size_bytes, {}, file_}));
    }

private:
    const std::vector<std::byte>& bytes() const { return disk_.files_.at(file_); }

    SimDisk& disk_;
    std::string file_;
};

std::unique_ptr<Node> SimDisk::open(const std::string& file) {
    files_.try_emplace(file);
    before_.try_emplace(file);
    return std::make_unique<SimNode>(*this, file);
}

std::unique_ptr<SimDisk> SimDisk::with(SimFiles files) {
    auto disk = std::make_unique<SimDisk>();
    disk->before_ = files;
    disk->files_ = std::move(files);
    return disk;
}

Result<void> SimDisk::change(Event event) {
    const auto end = event.offset + event.bytes.size();
    auto fine = next_operation();
    if (fine && end > limit_ && end > files_.at(event.file).size())
        fine = base::fail_errno(ENOSPC, "write to the simulated disk");
    if (!fine) {
        if (fine.error().os_errno != ENOSPC || event.kind != Event::Kind::Write)
            return fine;
        event.bytes.resize(event.bytes.size() / 2 / kSectorBytes * kSectorBytes);
        if (event.offset + event.bytes.size() > limit_)
            return fine;
    }
    record(std::move(event));
    return fine;
}

void SimDisk::record(Event event) {
    apply(files_.at(event.file), event);
    log_.push_back(std::move(event));
}

Result<void> SimDisk::next_operation() {
    if (fail_in_ == 0 || --fail_in_ != 0)
        return {};
    return base::fail_errno(fail_errno_, "the simulated disk fails");
}

void SimDisk::fail_after(std::size_t count, int os_errno) {
    fail_in_ = count + 1;
    fail_errno_ = os_errno;
}

void SimDisk::heal() {
    fail_in_ = 0;
    limit_ = kNoLimit;
}

void SimDisk::apply(std::vector<std::byte>& bytes, const Event& event) {
    if (event.kind == Event::Kind::Resize)
        bytes.resize(event.offset);
    if (event.kind != Event::Kind::Write)
        return;
    bytes.resize(std::max(bytes.size(), event.offset + event.bytes.size()));
    std::ranges::copy(event.bytes, bytes.begin() + static_cast<std::ptrdiff_t>(event.offset));
}

/// Each sector of the write arrives, or does not.
void SimDisk::apply_torn(std::vector<std::byte>& bytes, const Event& event, std::mt19937& random) {
    const auto end = event.offset + event.bytes.size();
    for (auto at = event.offset; at < end;) {
        const auto next = std::min(end, (at / kSectorBytes + 1) * kSectorBytes);
        if (random() % 2 == 0) {
            Event part{Event::Kind::Write, at, {}};
            const auto from = event.bytes.begin() + static_cast<std::ptrdiff_t>(at - event.offset);
            part.bytes.assign(from, from + static_cast<std::ptrdiff_t>(next - at));
            apply(bytes, part);
        }
        at = next;
    }
}

SimFiles SimDisk::after_power_cut(std::size_t events, std::mt19937& random) const {
    auto files = before_;
    std::map<std::string, std::size_t, std::less<>> flushed; // of each file: events before it
    for (std::size_t i = 0; i < events; ++i)
        if (is_flush(i))
            flushed[log_[i].file] = i;
    std::vector<std::size_t> rest;
    for (std::size_t i = 0; i < events; ++i) {
        const auto last = flushed.find(log_[i].file);
        if (last != flushed.end() && i < last->second)
            apply(files.at(log_[i].file), log_[i]);
        else
            rest.push_back(i);
    }
    std::ranges::shuffle(rest, random);
    for (const auto index : rest) {
        const auto& event = log_[index];
        auto& bytes = files.at(event.file);
        const auto fate = random() % 3;
        if (fate == 0)
            continue; // lost
        if (fate == 2 && event.kind == Event::Kind::Write)
            apply_torn(bytes, event, random);
        else
            apply(bytes, event);
    }
    return files;
}

} // namespace doppel::block
