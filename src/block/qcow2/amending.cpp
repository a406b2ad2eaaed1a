// SPDX-License-Identifier: Apache-2.0
/// What can be changed about an image that exists: version, refcounts' width, lazy refcounts, size,
/// and, by rebase, the backing file.
#include <algorithm>

#include <fmt/core.h>

#include "block/option_reader.hpp"
#include "block/qcow2/checker.hpp"
#include "block/qcow2/create_options.hpp"
#include "block/qcow2/qcow2_node.hpp"

namespace doppel::block::qcow2 {

Task<void> Qcow2Node::change_backing(std::string file, std::string backing_format) {
    if (!file.empty() && (header_.autoclear & autoclear::kRawExternal) != 0)
        co_return base::fail(Errc::InvalidArgument,
                             "an image with data_file_raw cannot have a backing file");
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    DOPPEL_AWAIT_VOID(commit_all());
    const auto old = header_;
    header_.backing_file = std::move(file);
    header_.backing_format = header_.backing_file.empty() ? "" : std::move(backing_format);
    auto task = write_header();
    auto written = co_await task;
    if (!written)
        header_ = old;
    co_return written;
}

namespace {

/// What an image shall become.
struct Amended {
    std::uint32_t version = 3;
    unsigned refcount_order = 4;
    bool lazy_refcounts = false;
};

Result<Amended> read_amended(const OptionReader& options, const Header& now) {
    Amended wanted{now.version, now.refcount_order,
                   (now.compatible & compatible::kLazyRefcounts) != 0};
    if (options.given("compat"))
        wanted.version = DOPPEL_TRY(parse_compat(options.text("compat")));
    if (options.given("refcount_bits"))
        wanted.refcount_order = DOPPEL_TRY(read_refcount_order(options));
    if (options.given("lazy_refcounts"))
        wanted.lazy_refcounts = DOPPEL_TRY(options.flag("lazy_refcounts"));
    if (wanted.version < 3 && options.given("lazy_refcounts") && wanted.lazy_refcounts)
        return base::fail(Errc::InvalidArgument, "lazy_refcounts wants compat 1.1");
    if (wanted.version < 3 && wanted.refcount_order != 4 && options.given("refcount_bits"))
        return base::fail(Errc::InvalidArgument, "refcount_bits other than 16 want compat 1.1");
    return wanted;
}

} // namespace

Task<void> Qcow2Node::amend(OptionValues values) {
    OptionValues keys;
    for (const auto& [name, value] : values)
        if (crypto::is_encrypt_option(name))
            keys.emplace(name, value);
    if (!keys.empty()) {
        DOPPEL_AWAIT_VOID(change_keys(keys));
        std::erase_if(values, [&](const auto& one) { return keys.contains(one.first); });
        if (values.empty())
            co_return {};
    }
    const OptionReader options{create_options(), values};
    DOPPEL_CO_TRY_VOID(options.check_names("qcow2"));
    for (const auto& [name, value] : values)
        if (name != "compat" && name != "lazy_refcounts" && name != "refcount_bits" &&
            name != "backing_file" && name != "backing_fmt" && name != "size")
            co_return base::fail(Errc::Unsupported,
                                 fmt::format("option '{}' cannot be changed later", name),
                                 "Convert the image instead.");
    // Another backing file shows other data: rebase sees to that, or is told that it need not.
    if ((options.given("backing_file") && options.text("backing_file") != header_.backing_file) ||
        (options.given("backing_fmt") && options.text("backing_fmt") != header_.backing_format))
        co_return base::fail(Errc::Unsupported, "the backing file cannot be amended",
                             "Use rebase.");
    DOPPEL_CO_TRY(wanted, read_amended(options, header_));
    if (const std::string obstacle = obstacle_to_version_2(wanted.refcount_order);
        wanted.version < header_.version && !obstacle.empty()) // before anything changes
        co_return base::fail(
            Errc::Unsupported,
            fmt::format("compat 0.10 cannot express what '{}' is: it {}", name(), obstacle));
    if (wanted.version > header_.version)
        DOPPEL_AWAIT_VOID(change_version(wanted.version));
    header_.compatible = wanted.lazy_refcounts ? header_.compatible | compatible::kLazyRefcounts
                                               : header_.compatible & ~compatible::kLazyRefcounts;
    if (wanted.refcount_order != header_.refcount_order)
        DOPPEL_AWAIT_VOID(change_refcount_width(wanted.refcount_order));
    if (wanted.version < header_.version)
        DOPPEL_AWAIT_VOID(change_version(wanted.version));
    DOPPEL_AWAIT_VOID(rewrite_header());
    if (options.given("size")) {
        DOPPEL_CO_TRY(bytes, options.size("size"));
        DOPPEL_AWAIT_VOID(resize(bytes));
    }
    co_return {};
}

Task<void> Qcow2Node::rewrite_header() {
    auto wait = metadata_.lock();
    auto guard = co_await wait;
    DOPPEL_AWAIT_VOID(commit_all());
    DOPPEL_AWAIT_VOID(write_header());
    co_return {};
}

Task<void> Qcow2Node::change_refcount_width(unsigned order) {
    DOPPEL_AWAIT(alone, lock_all(guests_, metadata_));
    DOPPEL_AWAIT_VOID(commit_all());
    Checker checker{*this};
    DOPPEL_AWAIT_VOID(checker.change_width(order));
    co_return {};
}

/// What version 2 cannot express, and the way out; empty if there is nothing.
std::string Qcow2Node::obstacle_to_version_2(unsigned refcount_order) const {
    if (!snapshots_.empty())
        return "has internal snapshots, in which zero clusters may be: delete them first "
               "('snapshot -d'), or convert it";
    if (!bitmaps_.bitmaps().empty())
        return "has bitmaps: remove them first ('bitmap --remove')";
    if (refcount_order != 4)
        return "has refcounts of other than 16 bits: amend it with refcount_bits=16, too";
    if ((header_.incompatible & ~incompatible::kDirty) != 0)
        return "has zstd clusters, extended L2 entries or a data file: convert it";
    return {};
}

/// To version 2: nothing is left that it cannot express, see obstacle_to_version_2().
Task<void> Qcow2Node::change_version(std::uint32_t version) {
    if (version < 3) {
        header_.compatible = 0;
        DOPPEL_AWAIT_VOID(expand_zeroes());
    }
    header_.version = version;
    co_return {};
}

/// Zero clusters become unallocated, or data where a backing file would show.
Task<void> Qcow2Node::expand_zeroes() {
    std::vector<std::byte> zeroes(geometry_.cluster());
    for (std::uint64_t at = 0; at < size();) {
        DOPPEL_AWAIT(run, find_run(at, size() - at));
        const auto end = at + run.length;
        for (; run.kind == Kind::Zero && at < end; at += geometry_.cluster()) {
            if (backing_) {
                const auto part = std::min(geometry_.cluster(), size() - at);
                const auto from = IoBuffer::of(std::span{zeroes}.first(part));
                DOPPEL_AWAIT_VOID(write(at, from, Durability::Cached));
                continue;
            }
            auto wait = metadata_.lock();
            auto guard = co_await wait;
            DOPPEL_AWAIT(entry, entry_at(at));
            DOPPEL_AWAIT_VOID(set_entry(at, {}));
            free_entry(entry, true);
        }
        at = end;
    }
    co_return {};
}

} // namespace doppel::block::qcow2
