// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Which equal units of a file are in use, found by walking an image's tables. Owner thread only.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace doppel::block {

class SpaceMap {
public:
    explicit SpaceMap(std::uint64_t units = 0) : used_(units) {}

    /// Marks units as in use, beyond the end if need be; false when one of them already is.
    bool take(std::uint64_t first, std::uint64_t count) {
        if (first + count > used_.size())
            used_.resize(first + count);
        bool free = true;
        for (std::uint64_t unit = first; unit < first + count; ++unit) {
            free = free && !used_[unit];
            used_[unit] = true;
        }
        return free;
    }
    void release(std::uint64_t first, std::uint64_t count) {
        for (std::uint64_t unit = first; unit < first + count; ++unit)
            used_[unit] = false;
        first_free_ = std::min(first_free_, first);
    }
    /// The first run of unused units below the end.
    std::optional<std::uint64_t> find(std::uint64_t count) {
        while (first_free_ < used_.size() && used_[first_free_])
            ++first_free_;
        std::uint64_t run = 0;
        for (auto unit = first_free_; unit < used_.size(); ++unit) {
            run = used_[unit] ? 0 : run + 1;
            if (run == count)
                return unit + 1 - count;
        }
        return std::nullopt;
    }
    bool contains(std::uint64_t unit) const { return unit < used_.size() && used_[unit]; }
    /// Behind the last unit in use, or known.
    std::uint64_t end() const { return used_.size(); }
    /// Forgets unused units at the end.
    void trim() {
        while (!used_.empty() && !used_.back())
            used_.pop_back();
    }

private:
    std::vector<bool> used_;
    std::uint64_t first_free_ = 0; // no unit below it is unused
};

} // namespace doppel::block
