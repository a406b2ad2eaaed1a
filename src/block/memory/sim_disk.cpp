// SPDX-License-Identifier: Apache-2.0
#include "block/memory/sim_disk.hpp"

#include <algorithm>
#include <cerrno>

#include <fmt/core.h>

namespace doppel::block {

class SimDisk::SimNode final : public Node {
public:
    explicit SimNode(SimDisk& disk) : disk_{disk} {}
    std::string driver() const override { return "memory"; }
    std::string name() const override { return "simulated"; }
    std::uint64_t size() const override { return disk_.bytes_.size(); }
    bool read_only() const override { return false; }

    Task<void> read(std::uint64_t offset, IoBuffer into) override {
        if (auto fine = disk_.next_operation(); !fine)
            co_return fine;
        const auto& bytes = disk_.bytes_;
        const auto known =
            offset < bytes.size() ? std::min<std::uint64_t>(into.size(), bytes.size() - offset) : 0;
        if (known > 0)
            into.slice(0, known).copy_from({bytes.data() + offset, known});
        into.slice(known, into.size() - known).fill(std::byte{0});
        co_return {};
    }
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override {
        std::vector<std::byte> bytes(from.size());
        from.copy_to(bytes);
        DOPPEL_CO_TRY_VOID(change({Event::Kind::Write, offset, std::move(bytes)}));
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
    Task<void> flush() override { return ready<void>(change({Event::Kind::Flush, 0, {}})); }
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override {
        Extent extent;
        extent.length = length;
        extent.host = offset;
        extent.place = this;
        return ready<Extent>(extent);
    }
    Task<void> resize(std::uint64_t size_bytes) override {
        return ready<void>(change({Event::Kind::Resize, size_bytes, {}}));
    }

private:
    Result<void> change(Event event) {
        DOPPEL_TRY_VOID(disk_.next_operation());
        if (event.offset + event.bytes.size() > disk_.limit_)
            return base::fail_errno(ENOSPC, "write to the simulated disk");
        apply(disk_.bytes_, event);
        disk_.log_.push_back(std::move(event));
        return {};
    }

    SimDisk& disk_;
};

std::unique_ptr<Node> SimDisk::open() { return std::make_unique<SimNode>(*this); }

std::unique_ptr<SimDisk> SimDisk::with(std::vector<std::byte> bytes) {
    auto disk = std::make_unique<SimDisk>();
    disk->before_ = bytes;
    disk->bytes_ = std::move(bytes);
    return disk;
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

std::vector<std::byte> SimDisk::after_power_cut(std::size_t events, std::mt19937& random) const {
    auto bytes = before_;
    std::size_t flushed = 0;
    for (std::size_t i = 0; i < events; ++i)
        if (is_flush(i))
            flushed = i + 1;
    for (std::size_t i = 0; i < flushed; ++i)
        apply(bytes, log_[i]);
    std::vector<std::size_t> rest;
    for (std::size_t i = flushed; i < events; ++i)
        rest.push_back(i);
    std::ranges::shuffle(rest, random);
    for (const auto index : rest) {
        switch (random() % 3) {
        case 0: break; // lost
        case 1: apply(bytes, log_[index]); break;
        default:
            if (log_[index].kind == Event::Kind::Write)
                apply_torn(bytes, log_[index], random);
            else
                apply(bytes, log_[index]);
        }
    }
    return bytes;
}

} // namespace doppel::block
