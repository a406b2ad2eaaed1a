// SPDX-License-Identifier: Apache-2.0
#include "block/copy/fresh_pages.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "block/copy/moving.hpp"

namespace doppel::block {

namespace {

/// Less is not worth a mapping.
constexpr std::uint64_t kLeast = 64u << 10;
/// Of a file mapped at once: what is mapped counts as memory of ours.
constexpr std::uint64_t kMost = 64u << 20;
/// Stays in the cache from being read to being in place.
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
    if (target_->memory() != nullptr)
        kernel_ = take_over(*target_);
    refused_ = !kernel_;
    if (!refused_)
        bytes_ = AlignedMemory::uninitialized(kStep);
}

/// Past what is there already, up to a few pages. At most kStep bytes.
bool FreshPages::make(const Move& pages) {
    if (!read_all(pages.from, bytes_.span().first(pages.length), pages.from_offset))
        return false;
    for (auto at = pages.to_offset; at < pages.to_end();) {
        const auto bytes = bytes_.span().subspan(at - pages.to_offset);
        uffdio_copy copy{.dst = reinterpret_cast<std::uintptr_t>(target_->at(at)),
                         .src = reinterpret_cast<std::uintptr_t>(bytes.data()),
                         .len = pages.to_end() - at,
                         .mode = 0,
                         .copy = 0};
        const bool made = ::ioctl(kernel_.get(), UFFDIO_COPY, &copy) == 0;
        if (!made && errno == EEXIST && ++existing_ <= kFew &&
            write_all(pages.to, bytes.first(kPage), at))
            at += kPage;
        else if (made || (errno == EAGAIN && copy.copy > 0))
            at += static_cast<std::uint64_t>(copy.copy);
        else
            return false;
    }
    return true;
}

Move FreshPages::fill(const Move& part) {
    const auto first = base::align_up(part.to_offset, kPage);
    const auto pages = part.within(first, std::max(first, base::align_down(part.to_end(), kPage)));
    if (refused_ || !kernel_ || pages.length < kLeast)
        return part.within(part.to_end(), part.to_end());
    auto at = first;
    while (at < pages.to_end() && !refused_) {
        const auto next = std::min(at + kStep, pages.to_end());
        refused_ = !make(pages.within(at, next));
        at = refused_ ? at : next;
    }
    return pages.within(first, at);
}

} // namespace doppel::block
