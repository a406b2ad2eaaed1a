// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Counts every reference in a qcow2 image and holds it against the refcounts and flags. Memory
/// follows the file's size, not what the image claims. Owner thread only; nobody else uses the
/// image meanwhile.
#include <array>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

/// A counter per host cluster, in pages that exist where something is counted.
class ReferenceCounts {
public:
    explicit ReferenceCounts(std::uint64_t clusters) : pages_(clusters / kPage + 1) {}
    std::uint64_t clusters() const { return pages_.size() * kPage; }
    void add(std::uint64_t cluster, std::uint64_t times);
    std::uint64_t get(std::uint64_t cluster) const;
    /// One past the last cluster that is counted.
    std::uint64_t end() const { return end_; }

private:
    static constexpr std::uint64_t kPage = 16384;
    using Page = std::array<std::uint32_t, kPage>;
    std::vector<std::unique_ptr<Page>> pages_;
    std::uint64_t end_ = 0;
};

class Checker {
public:
    explicit Checker(Qcow2Node& node);
    Task<CheckResult> run(Repair repair);
    /// Counts anew with 2^order bits for each cluster. The tables on disk must be up to date.
    Task<void> change_width(unsigned order);

private:
    void find(bool corruption, const std::string& text);
    bool count(const char* what, std::uint64_t offset, std::uint64_t bytes,
               std::uint64_t times = 1);
    Task<void> count_all();
    Task<void> count_active();
    Task<void> count_snapshots();
    Task<void> count_tables();
    Task<void> count_table(std::uint64_t offset, std::uint64_t times, bool active);
    bool count_entry(std::uint64_t table, std::uint64_t at, Entry entry, std::uint64_t times,
                     bool active);
    void count_data(std::uint64_t host, bool active);
    void count_bitmaps();
    void count_refcount_structure();
    Task<void> compare();
    Task<void> compare_one(std::uint64_t cluster);
    Task<void> check_flags();
    Task<void> check_table_flags(std::uint64_t table);
    Task<void> patch(std::uint64_t offset, std::uint64_t word);
    Result<void> require_fit(std::uint64_t most) const;
    std::uint64_t without_structure(std::uint64_t cluster) const;
    std::uint64_t count_in_the_end(std::uint64_t cluster) const;
    Task<void> rebuild();

    Qcow2Node& node_;
    Repair repair_ = Repair::None;
    CheckResult result_;
    ReferenceCounts references_;
    std::map<std::uint64_t, std::uint64_t> tables_;    // L2 table → how often it is referred to
    std::vector<std::uint64_t> active_;                // the active L1's tables, sorted
    std::map<std::uint64_t, std::uint64_t> structure_; // cluster → refcount tables and blocks in it
    bool structure_broken_ = false;                    // refcounts cannot be corrected in place
    std::uint64_t last_data_ = 0;                      // host offset of the data cluster before
};

} // namespace doppel::block::qcow2
