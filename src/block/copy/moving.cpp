// SPDX-License-Identifier: Apache-2.0
#include "block/copy/moving.hpp"

#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <ctime>
#include <vector>

#include <fmt/core.h>

#include "base/bytes.hpp"
#include "block/copy/fresh_pages.hpp"
#include "block/copy/huge_pages.hpp"

namespace doppel::block {

namespace {

constexpr std::uint64_t kShareAlignment = 4096;
constexpr std::size_t kCopyBytes = 1u << 20;
constexpr std::uint64_t kHugeStep = 8 * kHugePage;
/// What they may cost of what plain pages cost: a third is usual, more means that the host has to
/// give their memory back first.
constexpr double kHugeShare = 0.6;

bool share(const Move& move) {
    if (((move.from_offset | move.to_offset | move.length) & (kShareAlignment - 1)) != 0)
        return false;
    const file_clone_range range{move.from, move.from_offset, move.length, move.to_offset};
    return ::ioctl(move.to, FICLONERANGE, &range) == 0;
}

/// How far the kernel came; less than all where the file systems cannot, or `from` ends.
std::uint64_t move_in_kernel(const Move& move) {
    auto from = static_cast<off_t>(move.from_offset);
    auto to = static_cast<off_t>(move.to_offset);
    std::uint64_t done = 0;
    while (done < move.length) {
        const auto moved = ::copy_file_range(move.from, &from, move.to, &to, move.length - done, 0);
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved <= 0)
            break;
        done += static_cast<std::uint64_t>(moved);
    }
    return done;
}

base::Result<void> copy(const Move& move, std::uint64_t done) {
    std::vector<std::byte> memory(std::min<std::uint64_t>(kCopyBytes, move.length - done));
    while (done < move.length) {
        const auto part =
            std::span{memory}.first(std::min<std::uint64_t>(memory.size(), move.length - done));
        DOPPEL_TRY_VOID(read_all(move.from, part, move.from_offset + done));
        DOPPEL_TRY_VOID(write_all(move.to, part, move.to_offset + done));
        done += part.size();
    }
    return {};
}

base::Result<void> move_plainly(const Move& move, Ways& ways) {
    std::uint64_t done = 0;
    if (ways.in_kernel) {
        done = move_in_kernel(move);
        if (done == move.length)
            return {};
        ways.in_kernel = false;
    }
    return copy(move, done); // which also says what is wrong, if anything is
}

/// Of this thread, whatever else runs.
double cpu_seconds() {
    timespec now{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

/// The first moves that lie side by side in the target.
std::span<const Move> first_run(std::span<const Move> moves) {
    const auto gap = std::ranges::adjacent_find(
        moves, [](const Move& a, const Move& b) { return a.to_end() != b.to_offset; });
    return gap == moves.end() ? moves : moves.first(gap - moves.begin() + 1);
}

/// The huge pages that a run fills. Yields which part of the target has been written.
Move fill_huge_pages(std::span<const Move> run, Ways& ways) {
    const Move all{.to_offset = run.front().to_offset,
                   .length = run.back().to_end() - run.front().to_offset};
    const auto begin = base::align_up(all.to_offset, kHugePage);
    const auto end = base::align_down(all.to_end(), kHugePage);
    if (!ways.huge_pages || begin >= end)
        return all.within(all.to_offset, all.to_offset);
    auto at = begin;
    while (ways.huge_pages && at < end) { // a few at a time: they may turn out dear at any moment
        const auto next = std::min(at + kHugeStep, end);
        const auto start = cpu_seconds();
        const bool made = move_by_huge_pages(run, at, next);
        const auto cost = (cpu_seconds() - start) / static_cast<double>(next - at);
        ways.huge_pages = made && cost <= ways.plain_cost * kHugeShare;
        at = made ? next : at;
    }
    return all.within(begin, at);
}

/// By huge pages what they take. Yields what is left to move.
std::vector<Move> move_by_huge_pages(std::span<const Move> moves, Ways& ways) {
    std::vector<Move> left;
    while (!moves.empty()) {
        const auto run = first_run(moves);
        const auto done = fill_huge_pages(run, ways);
        for (const auto& move : run)
            for (const auto& part :
                 {move.within(0, done.to_offset), move.within(done.to_end(), move.to_end())})
                if (part.length > 0)
                    left.push_back(part);
        moves = moves.subspan(run.size());
    }
    return left;
}

/// The last page, so that the file reaches beyond all others.
base::Result<void> move_end(const Move& last, Ways& ways) {
    const auto begin = base::align_down(last.to_end() - 1, kPage);
    return move_plainly(last.within(begin, last.to_end()), ways);
}

base::Result<void> move_by_pages(std::span<const Move> moves, Ways& ways) {
    const bool fresh = ways.fresh_pages && FreshPages::worth(moves);
    if (fresh)
        DOPPEL_TRY_VOID(move_end(moves.back(), ways));
    FreshPages pages{fresh ? moves : moves.first(0)};
    for (auto rest : moves) {
        while (rest.length > 0) {
            const auto made = pages.fill(rest);
            const auto before = rest.within(0, made.to_offset);
            if (before.length > 0)
                DOPPEL_TRY_VOID(move_plainly(before, ways));
            rest = rest.within(made.to_end(), rest.to_end());
        }
    }
    ways.fresh_pages = ways.fresh_pages && !pages.refused();
    return {};
}

/// Without huge pages, to see what that costs.
base::Result<void> move_on_trial(std::span<const Move> moves, Ways& ways) {
    std::uint64_t bytes = 0;
    for (const auto& move : moves)
        bytes += move.length;
    const auto start = cpu_seconds();
    DOPPEL_TRY_VOID(move_by_pages(moves, ways));
    ways.plain_cost = (cpu_seconds() - start) / static_cast<double>(bytes);
    return {};
}

} // namespace

base::Result<void> move_data(std::span<const Move> moves, Ways& ways) {
    std::size_t shared = 0;
    while (ways.share && shared < moves.size()) {
        ways.share = share(moves[shared]);
        shared += ways.share ? 1 : 0;
    }
    const auto rest = moves.subspan(shared);
    if (rest.empty())
        return {};
    if (!ways.huge_pages)
        return move_by_pages(rest, ways);
    if (ways.plain_cost == 0)
        return move_on_trial(rest, ways);
    // Huge pages first: the kernel makes none where a userfaultfd watches.
    return move_by_pages(move_by_huge_pages(rest, ways), ways);
}

namespace {

std::unexpected<base::Error> failed(const char* what, std::size_t bytes, std::uint64_t offset,
                                    int fd) {
    const int reason = errno;
    std::array<char, PATH_MAX> path{};
    if (::readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), path.data(), path.size() - 1) < 0)
        path[0] = '?';
    return base::fail_errno(
        reason, fmt::format("{} {} bytes at {} of '{}'", what, bytes, offset, path.data()));
}

} // namespace

base::Result<void> read_all(int fd, std::span<std::byte> into, std::uint64_t offset) {
    for (std::size_t done = 0; done < into.size();) {
        const auto got =
            ::pread(fd, into.data() + done, into.size() - done, static_cast<off_t>(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return failed("read", into.size(), offset, fd);
        if (got == 0) {
            std::fill(into.begin() + static_cast<std::ptrdiff_t>(done), into.end(), std::byte{0});
            break;
        }
        done += static_cast<std::size_t>(got);
    }
    return {};
}

base::Result<void> write_all(int fd, std::span<const std::byte> from, std::uint64_t offset) {
    for (std::size_t done = 0; done < from.size();) {
        const auto put =
            ::pwrite(fd, from.data() + done, from.size() - done, static_cast<off_t>(offset + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return failed("write", from.size(), offset, fd);
        done += static_cast<std::size_t>(put);
    }
    return {};
}

} // namespace doppel::block
