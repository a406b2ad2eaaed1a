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
constexpr std::uint64_t kTrialBytes = 2 * kHugePage;

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

/// What the moves put into [begin, end) of the target.
base::Result<void> move_range(std::span<const Move> run, std::uint64_t begin, std::uint64_t end,
                              FreshPages& pages, Ways& ways) {
    for (const auto& move : run) {
        const auto part = move.within(begin, end);
        if (part.length == 0)
            continue;
        const auto made = pages.fill(part);
        for (const auto& rest :
             {part.within(0, made.to_offset), part.within(made.to_end(), part.to_end())})
            if (rest.length > 0)
                DOPPEL_TRY_VOID(move_plainly(rest, ways));
    }
    return {};
}

/// Of this thread, whatever else runs.
double cpu_seconds() {
    timespec now{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

/// False: it must be moved in another way.
bool try_huge_pages(std::span<const Move> run, std::uint64_t begin, std::uint64_t end, Ways& ways) {
    if (begin >= end)
        return true;
    const auto start = cpu_seconds();
    const bool moved = move_by_huge_pages(run, begin, end);
    const auto cost = (cpu_seconds() - start) / static_cast<double>(end - begin);
    ways.huge_pages = moved && cost <= ways.plain_cost;
    return moved;
}

/// As move_data(), of moves that lie side by side in the target: the huge pages that they fill, and
/// plainly what is before and behind. The first ones plainly, too, to see what that costs.
base::Result<void> move_run(std::span<const Move> run, FreshPages& pages, Ways& ways) {
    const auto first = run.front().to_offset;
    const auto last = run.back().to_end();
    auto begin = base::align_up(first, kHugePage);
    const auto end = base::align_down(last, kHugePage);
    if (!ways.huge_pages || begin >= end)
        return move_range(run, first, last, pages, ways);
    const bool trial = ways.plain_cost == 0;
    begin += trial ? std::min(kTrialBytes, end - begin) : 0;
    const auto start = cpu_seconds();
    DOPPEL_TRY_VOID(move_range(run, first, begin, pages, ways));
    if (trial)
        ways.plain_cost = (cpu_seconds() - start) / static_cast<double>(begin - first);
    const bool huge = try_huge_pages(run, begin, end, ways);
    return move_range(run, huge ? end : begin, last, pages, ways);
}

/// The last page, so that the file reaches beyond all others.
base::Result<void> move_end(const Move& last, Ways& ways) {
    const auto begin = base::align_down(last.to_end() - 1, kPage);
    return move_plainly(last.within(begin, last.to_end()), ways);
}

base::Result<void> move_runs(std::span<const Move> moves, FreshPages& pages, Ways& ways) {
    for (auto rest = moves; !rest.empty();) {
        const auto gap = std::ranges::adjacent_find(
            rest, [](const Move& a, const Move& b) { return a.to_end() != b.to_offset; });
        const auto count =
            gap == rest.end() ? rest.size() : static_cast<std::size_t>(gap - rest.begin()) + 1;
        DOPPEL_TRY_VOID(move_run(rest.first(count), pages, ways));
        rest = rest.subspan(count);
    }
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
    if (ways.fresh_pages)
        DOPPEL_TRY_VOID(move_end(rest.back(), ways));
    FreshPages pages{ways.fresh_pages ? rest : rest.first(0)};
    DOPPEL_TRY_VOID(move_runs(rest, pages, ways));
    ways.fresh_pages = ways.fresh_pages && !pages.refused();
    return {};
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
