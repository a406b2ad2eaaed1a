// SPDX-License-Identifier: Apache-2.0
#include "block/copy/fresh_pages.hpp"

#include <fcntl.h>
#include <linux/mman.h> // MADV_POPULATE_READ
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace doppel::block {

namespace {

/// Less is not worth a mapping.
constexpr std::uint64_t kLeast = 64u << 10;
/// Of a file mapped at once: what is mapped counts as memory of ours.
constexpr std::uint64_t kMost = 64u << 20;
/// In one call: other threads that map and unmap wait for its end.
constexpr std::uint64_t kStep = 256u << 10;
/// Pages that were there, and are written: one of each huge page that did not come about.
constexpr std::size_t kFew = 64;

/// Missing pages of `window` are ours to make. An invalid descriptor: the kernel has no such thing
/// or does not allow it.
base::UniqueFd take_over(const Window& window) {
    base::UniqueFd kernel{
        static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY))};
    uffdio_api api{.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM, .ioctls = 0};
    uffdio_register range{
        .range = {reinterpret_cast<std::uintptr_t>(window.memory()), window.size_bytes()},
        .mode = UFFDIO_REGISTER_MODE_MISSING,
        .ioctls = 0};
    if (!kernel || ::ioctl(kernel.get(), UFFDIO_API, &api) != 0 ||
        ::ioctl(kernel.get(), UFFDIO_REGISTER, &range) != 0)
        return {};
    return kernel;
}

/// Of a file that is neither ours nor ours to write, mincore() says that all its pages are there.
bool tells_which_pages_are_there(int fd) {
    struct stat file{};
    return ::fstat(fd, &file) == 0 &&
           (file.st_uid == ::geteuid() || ::faccessat(fd, "", W_OK, AT_EMPTY_PATH) == 0);
}

/// How many of the pages from `begin` on are there, or are not. Unlike SEEK_HOLE this looks little
/// further than that, which counts in a file without holes.
std::uint64_t count(std::byte* begin, std::uint64_t pages, bool there) {
    std::array<unsigned char, 256> is_there{};
    for (std::uint64_t done = 0; done < pages;) {
        const auto part = std::span{is_there}.first(std::min(is_there.size(), pages - done));
        if (::mincore(begin + done * kPage, part.size() * kPage, part.data()) != 0)
            return there ? done : pages;
        const auto other =
            std::ranges::find_if(part, [&](int page) { return ((page & 1) != 0) != there; });
        done += static_cast<std::uint64_t>(other - part.begin());
        if (other != part.end())
            return done;
    }
    return pages;
}

} // namespace

bool FreshPages::worth(std::span<const Move> moves) {
    const auto large = [](const Move& move) { return move.length >= kLeast; };
    return std::ranges::any_of(moves, large) &&
           moves.back().to_end() - moves.front().to_offset < kMost;
}

FreshPages::FreshPages(std::span<const Move> moves) {
    if (moves.empty())
        return;
    const auto begin = base::align_down(moves.front().to_offset, kPage);
    const auto end = moves.back().to_end();
    target_.emplace(moves.front().to, begin, base::align_up(end - begin, kPage),
                    PROT_READ | PROT_WRITE);
    if (target_->memory() != nullptr && tells_which_pages_are_there(moves.front().from))
        kernel_ = take_over(*target_);
    refused_ = !kernel_;
    map_source(moves);
}

/// As one piece if that is not too large: to map and unmap is dear beside other threads.
void FreshPages::map_source(std::span<const Move> moves) {
    auto begin = moves.front().from_offset;
    auto end = begin;
    for (const auto& move : moves) {
        begin = std::min(begin, move.from_offset);
        end = std::max(end, move.from_offset + move.length);
    }
    begin = base::align_down(begin, kPage);
    if (end - begin <= kMost)
        source_.emplace(moves.front().from, begin, end - begin, PROT_READ);
}

/// Past what is there already, up to a few pages.
bool FreshPages::make(const Move& pages) {
    for (auto at = pages.to_offset; at < pages.to_end();) {
        const auto step = pages.within(at, at + kStep);
        uffdio_copy copy{.dst = reinterpret_cast<std::uintptr_t>(target_->at(step.to_offset)),
                         .src = reinterpret_cast<std::uintptr_t>(source_->at(step.from_offset)),
                         .len = step.length,
                         .mode = 0,
                         .copy = 0};
        const bool made = ::ioctl(kernel_.get(), UFFDIO_COPY, &copy) == 0;
        if (!made && errno == EEXIST && ++existing_ <= kFew && write(step.within(at, at + kPage)))
            at += kPage;
        else if (made || (errno == EAGAIN && copy.copy > 0))
            at += static_cast<std::uint64_t>(copy.copy);
        else
            return false;
    }
    return true;
}

bool FreshPages::write(const Move& page) {
    return ::pwrite(page.to, source_->at(page.from_offset), page.length,
                    static_cast<off_t>(page.to_offset)) == static_cast<ssize_t>(page.length);
}

/// The first whole pages of the target whose bytes are there in the source, if they are enough.
Move FreshPages::first_there(const Move& pages) const {
    const auto skipped = pages.from_offset % kPage;
    std::byte* const from = source_->at(pages.from_offset - skipped);
    const auto size = base::align_up(skipped + pages.length, kPage) / kPage;
    for (std::uint64_t at = 0; at < size;) {
        at += count(from + at * kPage, size - at, false);
        const auto end = at + count(from + at * kPage, size - at, true);
        const auto whole = pages.within(
            pages.to_offset + base::align_up(std::max(at * kPage, skipped) - skipped, kPage),
            pages.to_offset + base::align_down(std::max(end * kPage, skipped) - skipped, kPage));
        if (whole.length >= kLeast)
            return whole;
        at = end;
    }
    return pages.within(pages.to_end(), pages.to_end());
}

Move FreshPages::fill(const Move& part) {
    const auto first = base::align_up(part.to_offset, kPage);
    const auto pages = part.within(first, std::max(first, base::align_down(part.to_end(), kPage)));
    const auto none = part.within(part.to_end(), part.to_end());
    if (!kernel_ || refused_ || pages.length < kLeast)
        return none;
    const auto begin = base::align_down(pages.from_offset, kPage);
    const auto bytes = pages.from_offset + pages.length - begin;
    if (!source_ || !source_->covers(begin, bytes))
        map_source({&pages, 1});
    if (!source_ || !source_->covers(begin, bytes))
        return none;
    const auto there = first_there(pages);
    if (there.length == 0 ||
        ::madvise(source_->at(base::align_down(there.from_offset, kPage)),
                  there.from_offset % kPage + there.length, MADV_POPULATE_READ) != 0)
        return none;
    refused_ = !make(there);
    return refused_ ? none : there;
}

} // namespace doppel::block
