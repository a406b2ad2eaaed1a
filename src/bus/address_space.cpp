// SPDX-License-Identifier: Apache-2.0
#include "bus/address_space.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "base/log.hpp"

namespace doppel::bus {

struct AddressSpace::Table {
    std::vector<Mapping> mappings; // sorted by base, disjoint
};

/// Keeps every table alive that was current when it began.
class AddressSpace::Reader {
public:
    explicit Reader(const AddressSpace& space)
        : counter_{space.readers_[space.parity_.load(std::memory_order_seq_cst) & 1]} {
        counter_.fetch_add(1, std::memory_order_seq_cst);
    }
    ~Reader() { counter_.fetch_sub(1, std::memory_order_release); }
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

private:
    std::atomic<std::uint32_t>& counter_;
};

namespace {

std::uint64_t all_ones(std::uint8_t size) { return size == 8 ? ~0ull : (1ull << (size * 8)) - 1; }

constexpr std::uint32_t kUnmappedReports = 8;

template <typename Visit> void each_doorbell(const Mapping& mapping, Visit&& visit) {
    if (mapping.doorbells == nullptr)
        return;
    auto address = mapping.base;
    for (const auto eventfd : mapping.doorbells->eventfds) {
        visit(address, eventfd);
        address += mapping.doorbells->stride_bytes;
    }
}

} // namespace

AddressSpace::AddressSpace(Kind kind) : kind_{kind}, current_{std::make_unique<Table>()} {
    table_.store(current_.get());
}

AddressSpace::~AddressSpace() = default;

/// A reader that chose its counter before the flip may be counted on either side and may still see
/// the table that was current at the flip before. A table is therefore freed only after *both*
/// counters have been seen at zero since its retirement: retired_[0] waits for its first zero,
/// retired_[1] for the other counter's.
void AddressSpace::replace(std::unique_ptr<const Table> next) {
    table_.store(next.get(), std::memory_order_seq_cst);
    retired_[0].push_back(std::exchange(current_, std::move(next)));
    free_unreachable();
}

void AddressSpace::free_unreachable() {
    const auto now = parity_.load(std::memory_order_relaxed) & 1;
    if (readers_[now ^ 1].load(std::memory_order_seq_cst) != 0)
        return; // somebody of the previous parity is still inside: try at the next change
    // All readers of the previous parity are gone: what had already waited one round is free.
    retired_[1].clear();
    retired_[1] = std::exchange(retired_[0], {});
    parity_.fetch_add(1, std::memory_order_seq_cst);
}

base::Result<void> AddressSpace::map(Mapping mapping) {
    if (mapping.size == 0 || mapping.base + (mapping.size - 1) < mapping.base)
        return base::fail(base::Errc::InvalidArgument,
                          fmt::format("mapping '{}' is empty or wraps around", mapping.name));
    const base::MutexLock lock{mutex_};
    auto next = std::make_unique<Table>(*current_);
    auto& all = next->mappings;
    const auto after = std::ranges::upper_bound(all, mapping.base, {}, &Mapping::base);
    const auto last = mapping.base + (mapping.size - 1);
    if (after != all.end() && after->base <= last)
        return base::fail(base::Errc::AlreadyExists,
                          fmt::format("mapping '{}' overlaps '{}'", mapping.name, after->name));
    if (after != all.begin()) {
        const auto& before = *(after - 1);
        if (before.base + (before.size - 1) >= mapping.base)
            return base::fail(base::Errc::AlreadyExists,
                              fmt::format("mapping '{}' overlaps '{}'", mapping.name, before.name));
    }
    hang(mapping);
    all.insert(after, std::move(mapping));
    replace(std::move(next));
    return {};
}

void AddressSpace::unmap(std::uint64_t base) {
    const base::MutexLock lock{mutex_};
    auto next = std::make_unique<Table>(*current_);
    const auto found = std::ranges::find(next->mappings, base, &Mapping::base);
    if (found == next->mappings.end())
        return;
    take_down(*found);
    next->mappings.erase(found);
    replace(std::move(next));
}

// --- doorbells --------------------------------------------------------------------------------

void AddressSpace::set_doorbell_host(DoorbellHost* host) {
    const base::MutexLock lock{mutex_};
    for (const auto& mapping : current_->mappings)
        take_down(mapping);
    doorbell_host_ = host;
    for (const auto& mapping : current_->mappings)
        hang(mapping);
}

void AddressSpace::hang(const Mapping& mapping) {
    if (DoorbellHost* const host = doorbell_host_; host != nullptr)
        each_doorbell(mapping,
                      [host](std::uint64_t address, int eventfd) { host->hang(address, eventfd); });
}

void AddressSpace::take_down(const Mapping& mapping) {
    if (DoorbellHost* const host = doorbell_host_; host != nullptr)
        each_doorbell(mapping, [host](std::uint64_t address, int eventfd) {
            host->take_down(address, eventfd);
        });
}

// --- look-ups ---------------------------------------------------------------------------------

const Mapping* AddressSpace::find(const Table& table, std::uint64_t address) const {
    const auto after = std::ranges::upper_bound(table.mappings, address, {}, &Mapping::base);
    if (after == table.mappings.begin())
        return nullptr;
    const auto& candidate = *(after - 1);
    return address - candidate.base < candidate.size ? &candidate : nullptr;
}

std::uint64_t AddressSpace::read(std::uint64_t address, std::uint8_t size) {
    accesses_.fetch_add(1, std::memory_order_relaxed);
    const Reader reader{*this};
    const auto* mapping = find(*table_.load(std::memory_order_seq_cst), address);
    if (mapping == nullptr) {
        report_unmapped("read", address, size);
        return all_ones(size);
    }
    return read_mapped(*mapping, address - mapping->base, size) & all_ones(size);
}

void AddressSpace::write(std::uint64_t address, std::uint8_t size, std::uint64_t value) {
    accesses_.fetch_add(1, std::memory_order_relaxed);
    const Reader reader{*this};
    const auto* mapping = find(*table_.load(std::memory_order_seq_cst), address);
    if (mapping == nullptr) {
        report_unmapped("write", address, size);
        return;
    }
    write_mapped(*mapping, address - mapping->base, size, value & all_ones(size));
}

std::uint64_t AddressSpace::read_mapped(const Mapping& mapping, std::uint64_t offset,
                                        std::uint8_t size) {
    const auto& rules = mapping.rules;
    if (size < rules.min_size || (!rules.unaligned && offset % std::min(size, rules.max_size) != 0))
        return ~0ull;
    if (size <= rules.max_size && size <= mapping.size - offset)
        return mapping.handler->io_read({offset, size});
    const auto piece = std::min(size, rules.max_size);
    std::uint64_t value = 0;
    for (std::uint8_t done = 0; done < size; done = static_cast<std::uint8_t>(done + piece)) {
        const auto part = piece <= mapping.size && offset + done <= mapping.size - piece
                              ? mapping.handler->io_read({offset + done, piece})
                              : ~0ull; // the access runs over the end of the mapping
        value |= (part & all_ones(piece)) << (done % 8 * 8); // no access is wider
    }
    return value;
}

void AddressSpace::write_mapped(const Mapping& mapping, std::uint64_t offset, std::uint8_t size,
                                std::uint64_t value) {
    const auto& rules = mapping.rules;
    if (size < rules.min_size || (!rules.unaligned && offset % std::min(size, rules.max_size) != 0))
        return;
    if (size <= rules.max_size && size <= mapping.size - offset) {
        mapping.handler->io_write({offset, size}, value);
        return;
    }
    const auto piece = std::min(size, rules.max_size);
    for (std::uint8_t done = 0; done < size; done = static_cast<std::uint8_t>(done + piece)) {
        if (piece <= mapping.size && offset + done <= mapping.size - piece)
            mapping.handler->io_write({offset + done, piece},
                                      (value >> (done * 8)) & all_ones(piece));
    }
}

void AddressSpace::report_unmapped(const char* what, std::uint64_t address, std::uint8_t size) {
    // load first: a guest that probes in a loop must not make this line of memory contended
    if (unmapped_reports_.load(std::memory_order_relaxed) >= kUnmappedReports ||
        unmapped_reports_.fetch_add(1, std::memory_order_relaxed) >= kUnmappedReports)
        return;
    base::log_debug("{} {} of {} bytes at {:#x}: nothing is mapped there",
                    kind_ == Kind::Pio ? "port" : "memory", what, size, address);
}

bool AddressSpace::is_mapped(std::uint64_t address) const {
    const Reader reader{*this};
    return find(*table_.load(std::memory_order_seq_cst), address) != nullptr;
}

std::vector<Mapping> AddressSpace::mappings() const {
    const base::MutexLock lock{mutex_};
    return current_->mappings;
}

} // namespace doppel::bus
